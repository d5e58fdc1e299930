// The numbers of one token.

function rowsOf(store, tokens, response, token, at) {
  const rows = [
    ["position", String(tokens.pos[at]), "of " + store.responses.n[response]],
    ["token id", String(store.vocabulary.ids[tokens.place[at]]), ""],
  ];
  const logp = tokens.columns.logp;
  if (logp) rows.push(["probability before the step", shortNumber(Math.exp(logp[at])), ""]);
  for (const quantity of store.meta.quantities) {
    const value = valueAt(tokens, quantity, at);
    if (value === undefined) continue;
    const number = quantityNumber(value, quantity);
    rows.push([quantity.label, number, quantity.unit, quantity.name]);
  }
  const advantage = store.responses.advantage[response];
  if (advantage !== null) rows.push(["advantage of the response", signedNumber(advantage), ""]);
  rows.push(["flags", flagText(tokens.flags[at]), ""]);
  return rows;
}

// current: the name of the quantity that the colours show.
function showPanel(node, store, tokens, response, token, current) {
  const at = tokens.starts[response - tokens.first] + token;
  const text = tokenText(store.text(tokens.place[at]));
  const quantity = store.quantity(current);
  const value = valueAt(tokens, quantity, at);
  const number = value === undefined ? "not recorded in this step"
    : quantityNumber(value, quantity) + " " + quantity.unit;
  node.querySelector(".tv-word").textContent = text;
  node.querySelector(".tv-say").textContent =
    "Token " + tokens.pos[at] + ", “" + text + "”: " + quantity.label + " " + number;
  const rows = rowsOf(store, tokens, response, token, at).map(([label, value, unit, name]) => {
    const row = made("tr", name === current ? "current" : "");
    const head = made("th", "", label);
    head.scope = "row";
    row.append(head, made("td", "", value), made("td", "unit", unit));
    return row;
  });
  node.querySelector("tbody").replaceChildren(...rows);
  node.classList.add("filled");
}
