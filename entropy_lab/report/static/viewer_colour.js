// Colours of numbers: blue falls, orange rises, paper in between; viewer.css mixes them.

// quantity.kind: diverging has 0 in the middle, weight 1, from_zero 0 at one end.
function middleOf(quantity) {
  return quantity.kind === "weight" ? 1 : 0;
}

function quantile(numbers, share) {
  const sorted = Float64Array.from(numbers).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

// |x - middle| at which a colour is at its strongest: the 98 % quantile, or the largest where
// that is 0.
function limitOf(values, quantity) {
  const middle = middleOf(quantity);
  const sizes = [];
  if (values) for (const x of values) if (Number.isFinite(x)) sizes.push(Math.abs(x - middle));
  return quantile(sizes, 0.98) || sizes.reduce((a, b) => Math.max(a, b), 0);
}

function paint(node, value, quantity, limit) {
  const known = Number.isFinite(value);
  const away = known ? value - middleOf(quantity) : 0;
  const share = limit > 0 ? Math.min(1, Math.abs(away) / limit) : 0;
  node.classList.toggle("unknown", !known);
  node.classList.toggle("rise", known && away > 0);
  node.classList.toggle("fall", known && away < 0);
  node.style.setProperty("--t", (100 * share).toFixed(0) + "%");
}

function showLegend(node, quantity, limit) {
  const middle = middleOf(quantity);
  const low = quantity.kind === "from_zero" ? 0 : middle - limit;
  const ends = limit > 0 ? [low, middle, middle + limit] : [middle];
  node.querySelector(".bar").className = "bar " + quantity.kind;
  const unit = quantity.unit ? " " + quantity.unit : "";
  const marks = quantity.kind === "from_zero" ? ends.slice(1) : ends;
  const labels = marks.map((x) => made("span", "", quantityNumber(x, quantity)));
  node.querySelector(".marks").replaceChildren(...labels);
  const about = limit > 0 ? "stronger values have the same colour" : "no token differs";
  node.querySelector(".about").textContent =
    quantity.label + unit.replace(/^ /, ", ") + "; " + about;
}

// The colours of the present theme, for the canvas.
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { rise: of("--rise-line"), fall: of("--fall-line"), line: of("--line"),
    ink: of("--ink"), soft: of("--soft") };
}
