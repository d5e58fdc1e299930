// The quantity along the positions of one response, under its text.

const PLOT_LEFT = 78; // room for the labels, pixels
const PLOT_RIGHT = 8;

function plotFrame(canvas) {
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const sides = { left: PLOT_LEFT, right: width - PLOT_RIGHT, top: 8, bottom: height - 20 };
  return { pen, width, height, ...sides };
}

// The range of the values with the middle in it; widened where all are equal.
function rangeOf(values, middle) {
  let low = middle;
  let high = middle;
  for (const x of values) {
    if (Number.isFinite(x)) {
      low = Math.min(low, x);
      high = Math.max(high, x);
    }
  }
  return low === high ? [low - 1, high + 1] : [low, high];
}

function drawAxes(frame, colours, low, high, middle, n, y) {
  const { pen, left, right, bottom } = frame;
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = colours.soft;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const marks = [high, middle, low].filter((x, i, all) => all.indexOf(x) === i);
  let last = -Infinity;
  for (const x of marks) {
    if (y(x) - last < 11) continue;
    pen.fillText(shortNumber(x), left - 6, y(x));
    last = y(x);
  }
  pen.textBaseline = "top";
  pen.textAlign = "left";
  pen.fillText("0", left, bottom + 5);
  pen.textAlign = "right";
  if (n > 1) pen.fillText("position " + (n - 1), right, bottom + 5);
  pen.strokeStyle = colours.line;
  pen.beginPath();
  pen.moveTo(left, y(middle));
  pen.lineTo(right, y(middle));
  pen.stroke();
}

function drawPlot(canvas, values, quantity, marked) {
  const frame = plotFrame(canvas);
  if (frame.width === 0) return;
  const colours = themeColours();
  const middle = middleOf(quantity);
  const [low, high] = rangeOf(values, middle);
  const { pen, left, right, top, bottom } = frame;
  const y = (x) => bottom - ((x - low) / (high - low)) * (bottom - top);
  const wide = (right - left) / Math.max(1, values.length);
  pen.clearRect(0, 0, frame.width, frame.height);
  drawAxes(frame, colours, low, high, middle, values.length, y);
  values.forEach((x, i) => {
    if (!Number.isFinite(x)) return;
    pen.fillStyle = x >= middle ? colours.rise : colours.fall;
    const from = Math.min(y(x), y(middle));
    const tall = Math.max(1, Math.abs(y(x) - y(middle)));
    pen.fillRect(left + i * wide, from, Math.max(1, wide * 0.8), tall);
  });
  if (marked >= 0) {
    pen.strokeStyle = colours.ink;
    pen.strokeRect(left + marked * wide - 1, top, Math.max(3, wide * 0.8 + 2), bottom - top);
  }
}

// The token under a place of the canvas, -1 outside.
function tokenAt(canvas, event, n) {
  const box = canvas.getBoundingClientRect();
  const share = (event.clientX - box.left - PLOT_LEFT) / (box.width - PLOT_RIGHT - PLOT_LEFT);
  return share < 0 || share >= 1 ? -1 : Math.floor(share * n);
}
