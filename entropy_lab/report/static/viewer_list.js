// A list box that holds any number of entries: only those in view are in the page.

const ROW_HEIGHT = 58;
const SPARE_ROWS = 4;

class VirtualList {
  // draw(entry, node) fills a row; choose(entry, index) is called when the user picks one.
  constructor(node, draw, choose) {
    Object.assign(this, { node, draw, choose, entries: [], active: -1, first: -1, last: -1 });
    this.inner = made("div", "tv-rows");
    this.inner.setAttribute("role", "presentation");
    node.replaceChildren(this.inner);
    node.addEventListener("scroll", () => this.render(false), { passive: true });
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.render(false)).observe(node);
  }

  show(entries, active) {
    this.entries = entries;
    this.active = active;
    this.inner.style.height = entries.length * ROW_HEIGHT + "px";
    this.render(true);
    if (active >= 0) this.reveal(active);
  }

  render(anew) {
    const top = Math.floor(this.node.scrollTop / ROW_HEIGHT);
    const seen = Math.ceil(this.node.clientHeight / ROW_HEIGHT);
    const first = Math.max(0, top - SPARE_ROWS);
    const last = Math.min(this.entries.length, top + seen + SPARE_ROWS);
    if (!anew && first === this.first && last === this.last) return;
    this.first = first;
    this.last = last;
    const rows = [];
    for (let i = first; i < last; i++) rows.push(this.row(i));
    if (this.active >= 0 && (this.active < first || this.active >= last)) {
      if (this.active < this.entries.length) rows.push(this.row(this.active));
    }
    this.inner.replaceChildren(...rows);
    if (this.active >= 0 && this.active < this.entries.length) {
      this.node.setAttribute("aria-activedescendant", this.node.id + "-" + this.active);
    } else {
      this.node.removeAttribute("aria-activedescendant");
    }
  }

  row(i) {
    const node = made("div", i === this.active ? "tv-row active" : "tv-row");
    node.id = this.node.id + "-" + i;
    node.dataset.index = i;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", String(i === this.active));
    node.setAttribute("aria-setsize", String(this.entries.length));
    node.setAttribute("aria-posinset", String(i + 1));
    node.style.transform = "translateY(" + i * ROW_HEIGHT + "px)";
    this.draw(this.entries[i], node);
    return node;
  }

  reveal(i) {
    const top = i * ROW_HEIGHT;
    const box = this.node;
    if (top < box.scrollTop) box.scrollTop = top;
    const below = top + ROW_HEIGHT - box.clientHeight;
    if (below > box.scrollTop) box.scrollTop = below;
  }

  pick(i) {
    if (i < 0 || i >= this.entries.length) return;
    this.active = i;
    this.reveal(i);
    this.render(true);
    this.choose(this.entries[i], i);
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.node.clientHeight / ROW_HEIGHT) - 1);
    const end = this.entries.length - 1;
    const moves = { ArrowDown: this.active + 1, ArrowUp: this.active - 1, Home: 0, End: end,
      PageDown: Math.min(end, this.active + page), PageUp: Math.max(0, this.active - page) };
    if (!(event.key in moves)) return;
    event.preventDefault();
    this.pick(moves[event.key]);
  }

  click(event) {
    const row = event.target.closest("[data-index]");
    if (row) this.pick(Number(row.dataset.index));
  }
}
