// The packed data of the page: base64, deflate, numbers in planes of bytes (encode.py writes them).

function element(id) {
  return document.getElementById("tv-" + id);
}

function bytesOf(id) {
  const text = element("blob-" + id).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function inflated(id) {
  const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function inflatedJson(id) {
  return JSON.parse(new TextDecoder().decode(await inflated(id)));
}

// Two planes, high bytes then low bytes, are the upper halves of float32 numbers.
function floatsAt(bytes, at, n) {
  const bits = new Uint32Array(n);
  for (let i = 0; i < n; i++) bits[i] = (bytes[at + i] << 24) | (bytes[at + n + i] << 16);
  return new Float32Array(bits.buffer);
}

function integersAt(bytes, at, n) {
  const out = new Uint32Array(n);
  for (let i = 0; i < n; i++) {
    out[i] = (bytes[at + i] << 16) | (bytes[at + n + i] << 8) | bytes[at + 2 * n + i];
  }
  return out;
}

// starts[k] is the first token of the step's k-th response, starts[responses] the end.
function startsOf(step, sizes) {
  const starts = new Uint32Array(step.responses + 1);
  for (let k = 0; k < step.responses; k++) starts[k + 1] = starts[k] + sizes[step.first + k];
  return starts;
}

function countedPositions(starts) {
  const out = new Uint32Array(starts[starts.length - 1]);
  for (let k = 0; k + 1 < starts.length; k++) {
    for (let i = starts[k]; i < starts[k + 1]; i++) out[i] = i - starts[k];
  }
  return out;
}

function tokensOf(bytes, step, sizes) {
  const starts = startsOf(step, sizes);
  const n = starts[step.responses];
  const columns = {};
  let at = 0;
  for (const name of step.columns) {
    columns[name] = floatsAt(bytes, at, n);
    at += 2 * n;
  }
  const place = integersAt(bytes, at, n);
  const flags = bytes.slice(at + 3 * n, at + 4 * n);
  const pos = step.regular ? countedPositions(starts) : integersAt(bytes, at + 4 * n, n);
  return { n, starts, columns, place, flags, pos, slopes: step.slopes, errors: new Map() };
}

// What a page holds of a run: meta at once, texts when opened, the numbers of a step when asked.
class TokenStore {
  constructor() {
    this.meta = JSON.parse(element("meta").textContent);
    this.steps = new Map();
  }

  async open() {
    this.responses = await inflatedJson("responses");
    this.vocabulary = await inflatedJson("vocabulary");
  }

  async step(i) {
    if (!this.steps.has(i)) {
      const bytes = new Uint8Array(await inflated("step-" + i));
      if (this.steps.size >= 8) this.steps.delete(this.steps.keys().next().value);
      this.steps.set(i, tokensOf(bytes, this.meta.steps[i], this.responses.n));
    }
    return this.steps.get(i);
  }

  quantity(name) {
    return this.meta.quantities.find((q) => q.name === name);
  }

  text(place) {
    const text = this.vocabulary.texts[place];
    return text === null ? "#" + this.vocabulary.ids[place] + " " : text;
  }
}

// The numbers of a quantity for all tokens of a step; null where the step has none.
function valuesOf(tokens, quantity) {
  const source = tokens.columns[quantity.of || quantity.name];
  if (!source || !quantity.of) return source || null;
  const measured = tokens.columns.dH;
  if (!measured) return null;
  if (!tokens.errors.has(quantity.name)) {
    const slope = tokens.slopes[quantity.name] ?? 1;
    tokens.errors.set(quantity.name, measured.map((x, i) => x - slope * source[i]));
  }
  return tokens.errors.get(quantity.name);
}

// The same of one token; undefined where the step has none.
function valueAt(tokens, quantity, i) {
  const source = tokens.columns[quantity.of || quantity.name];
  if (!source || !quantity.of) return source?.[i];
  const slope = tokens.slopes[quantity.name] ?? 1;
  return tokens.columns.dH && tokens.columns.dH[i] - slope * source[i];
}
