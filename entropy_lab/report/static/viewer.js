// The token viewer: its state, and what the controls do to it.

class Viewer {
  constructor(store) {
    this.store = store;
    this.groups = groupsOf(store);
    this.at = { step: 0, group: null, response: -1, token: -1 };
    this.list = new VirtualList(element("list"),
      (entry, node) => drawEntry(store, entry, node, this.everywhere, this.words),
      (entry) => this.goGroup(entry, entry.hit));
    this.cards = new Cards(element("cards"), store,
      (card, token) => this.panel(card, token),
      (card, token) => this.choose(card, token));
    this.controls();
  }

  get words() { return element("search").value.trim().toLowerCase(); }
  get everywhere() { return element("everywhere").checked; }
  get quantity() { return this.store.quantity(element("quantity").value); }

  controls() {
    const menu = element("quantity");
    const headings = new Map();
    for (const q of this.store.meta.quantities) {
      if (!headings.has(q.heading)) {
        const group = document.createElement("optgroup");
        group.label = q.heading;
        headings.set(q.heading, group);
      }
      const option = made("option", "", q.label + (q.unit ? " (" + q.unit + ")" : ""));
      option.value = q.name;
      headings.get(q.heading).append(option);
    }
    menu.replaceChildren(...headings.values());
    const recolour = () => this.recolour();
    for (const id of ["quantity", "scale"]) element(id).addEventListener("change", recolour);
    element("range").addEventListener("change", () => this.strongest());
    element("best").addEventListener("toggle", () => this.strongest());
    const slider = element("step");
    slider.max = String(this.store.meta.steps.length - 1);
    slider.addEventListener("input", () => this.named(Number(slider.value)));
    slider.addEventListener("change", () => this.goStep(Number(slider.value)));
    element("back").addEventListener("click", () => this.goStep(this.at.step - 1));
    element("next").addEventListener("click", () => this.goStep(this.at.step + 1));
    let waiting = 0;
    element("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.relist(), 150);
    });
    for (const id of ["everywhere", "filter", "order"]) {
      element(id).addEventListener("change", () => this.relist());
    }
    this.plotControls();
  }

  plotControls() {
    const canvas = element("plot");
    const token = (event) => this.card ? tokenAt(canvas, event, this.card.n) : -1;
    canvas.addEventListener("mousemove", (event) => {
      const at = token(event);
      if (at >= 0) this.panel(this.card, at);
    });
    canvas.addEventListener("click", (event) => this.cards.focus(this.card, token(event)));
    new ResizeObserver(() => this.plot()).observe(canvas);
    document.addEventListener("themechange", () => this.plot());
    for (const look of ["(prefers-color-scheme: dark)", "print"]) {
      window.matchMedia(look).addEventListener("change", () => this.plot());
    }
  }

  named(step) {
    const { steps } = this.store.meta;
    const text = "Step " + steps[step].step + ", " + (step + 1) + " of " + steps.length + " here";
    element("step-name").textContent = text;
    element("step").setAttribute("aria-valuetext", text);
  }

  async goStep(step) {
    const last = this.store.meta.steps.length - 1;
    const wanted = Math.min(last, Math.max(0, step));
    const first = this.groups.find((g) => g.step === wanted);
    await this.goGroup(first, first.from);
    this.relist();
  }

  // Show a group, its response `response` first in the plot.
  async goGroup(group, response) {
    const { step } = group;
    this.wanted = group;
    const tokens = await this.store.step(step);
    if (this.wanted !== group) return; // another one was asked for meanwhile
    const info = this.store.meta.steps[step];
    tokens.first = info.first;
    this.tokens = tokens;
    this.at = { step, group, response, token: -1 };
    element("step").value = String(step);
    element("back").disabled = step === 0;
    element("next").disabled = step === this.store.meta.steps.length - 1;
    this.named(step);
    const places = Array.from({ length: group.to - group.from }, (_, i) => group.from + i);
    element("title").textContent = "Step " + info.step + ", prompt group " + (group.group + 1);
    const all = this.store.responses;
    element("prompt").textContent =
      visibleText(all.prompts[all.prompt[group.from]]) || "The run recorded no prompt text.";
    this.cards.show(places, tokens, info.first);
    this.card = this.cards.cards[response - group.from];
    this.card.node.classList.add("chosen");
    this.recolour();
  }

  async go(response, token) {
    const group = this.groups.find((g) => g.from <= response && response < g.to);
    await this.goGroup(group, response);
    this.relist();
    this.cards.focus(this.card, token);
  }

  relist() {
    const query = { step: this.everywhere ? -1 : this.at.step, words: this.words,
      filter: element("filter").value, order: element("order").value };
    const entries = listed(this.store, this.groups, query);
    const { group } = this.at;
    const active = group ? entries.findIndex((e) => e.from === group.from) : -1;
    this.list.show(entries, active);
    const what = entries.length === 1 ? " group" : " groups";
    element("count").textContent = entries.length.toLocaleString("en") + what +
      (this.everywhere ? " in all steps" : " in this step") + (this.words ? " found" : "");
  }

  recolour() {
    const { quantity, tokens } = this;
    const values = valuesOf(tokens, quantity);
    const wide = element("scale").value === "run" ? quantity.limit : 0;
    const limit = wide || limitOf(values, quantity);
    showLegend(element("legend"), quantity, values ? limit : 0);
    element("absent").hidden = values !== null;
    this.cards.repaint((span, i) => paint(span, values ? values[i] : NaN, quantity, limit));
    this.values = values;
    this.plot();
    this.strongest();
    if (this.at.token >= 0) this.panel(this.card, this.at.token);
  }

  strongest() {
    const { quantity } = this;
    if (!element("best").open) return; // made when it is looked at
    const ofRun = element("range").value === "run";
    const found = ofRun ? this.store.meta.strongest[quantity.name]
      : strongestOfStep(this.store, this.tokens, quantity);
    const go = (response, token) => this.go(response, token);
    showStrongest(element("strongest"), this.store, found, quantity, go);
  }

  plot() {
    const { card, values, quantity } = this;
    if (!card) return;
    const part = values ? Array.from(values.subarray(card.start, card.start + card.n)) : [];
    drawPlot(element("plot"), part, quantity, this.at.token);
    const which = card.response - this.at.group.from + 1;
    const [low, high] = rangeOf(part, middleOf(quantity));
    element("plot").setAttribute("aria-label", quantity.label + " by position of response " +
      which + ", from " + shortNumber(low) + " to " + shortNumber(high) + " " + quantity.unit);
    element("plot-of").textContent = quantity.label + (quantity.unit ? ", " + quantity.unit : "") +
      ", by position of response " + which;
  }

  panel(card, token) {
    showPanel(element("panel"), this.store, this.tokens, card.response, token, this.quantity.name);
  }

  choose(card, token) {
    if (this.card) this.card.node.classList.remove("chosen");
    card.node.classList.add("chosen");
    this.card = card;
    Object.assign(this.at, { response: card.response, token });
    this.panel(card, token);
    this.plot();
  }
}

async function openViewer() {
  const root = element("root");
  try {
    if (!window.DecompressionStream) throw new Error("this browser has no DecompressionStream");
    const store = new TokenStore();
    await store.open();
    root.hidden = false;
    const viewer = new Viewer(store);
    await viewer.goStep(0);
    root.dataset.ready = "true";
  } catch (error) {
    element("failed").hidden = false;
    element("failed").textContent = "The token viewer cannot start: " + error.message;
    console.error(error);
  }
}

// Opened when it comes near the window, so that the page itself is there at once.
function watchViewer() {
  const place = element("place");
  if (!place) return;
  const watcher = new IntersectionObserver((seen) => {
    if (!seen.some((s) => s.isIntersecting)) return;
    watcher.disconnect();
    openViewer();
  }, { rootMargin: "600px" });
  watcher.observe(place);
}
