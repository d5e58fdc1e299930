// The tokens with the largest values, of the step or of all steps, each a button that goes there.

const STRONGEST = 25;

// [response, token] of the largest |x - middle| of a step.
function strongestOfStep(store, tokens, quantity) {
  const values = valuesOf(tokens, quantity);
  if (!values) return [];
  const middle = middleOf(quantity);
  const order = [];
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i]) && values[i] !== middle) order.push(i);
  }
  order.sort((a, b) => Math.abs(values[b] - middle) - Math.abs(values[a] - middle) || a - b);
  return order.slice(0, STRONGEST).map((i) => {
    let k = 0;
    let end = tokens.starts.length - 1;
    while (end - k > 1) {
      const half = (k + end) >> 1;
      if (tokens.starts[half] <= i) k = half;
      else end = half;
    }
    return [tokens.first + k, i - tokens.starts[k], tokenText(store.text(tokens.place[i])),
      values[i]];
  });
}

function showStrongest(node, store, found, quantity, go) {
  const all = store.responses;
  const items = found.map(([response, token, text, value]) => {
    const button = made("button", "tv-go");
    button.type = "button";
    const where = "step " + store.meta.steps[all.step[response]].step + ", group " +
      (all.group[response] + 1) + ", position " + token;
    if (text !== undefined) {
      const number = " " + quantityNumber(value, quantity) + " ";
      button.append(made("b", "", shortened(text, 24)), number);
    }
    button.append(made("span", "", where));
    button.addEventListener("click", () => go(response, token));
    const item = made("li");
    item.append(button);
    return item;
  });
  const none = made("li", "", "No token of this step has a value of " + quantity.label + ".");
  node.replaceChildren(...(items.length ? items : [none]));
}
