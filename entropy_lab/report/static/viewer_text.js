// How texts and numbers are shown. Texts of a run only ever reach the page as textContent.

const LONGEST_TOKEN = 200; // pack.py cuts them before that
// Characters that would be invisible or would turn the direction of what stands beside them.
const HIDDEN = /[\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/;

function codePoint(character) {
  return "⟨U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩";
}

function visibleCharacter(character) {
  const code = character.codePointAt(0);
  if (code === 10 || code === 9) return character;
  if (code < 32) return String.fromCharCode(0x2400 + code);
  if (code === 127) return "␡";
  if (code >= 0x80 && code < 0xa0) return codePoint(character);
  if (code >= 0xd800 && code <= 0xdfff) return codePoint(character);
  return HIDDEN.test(character) ? codePoint(character) : character;
}

function visibleText(text) {
  return Array.from(text, visibleCharacter).join("");
}

function shortened(text, longest) {
  if (text.length <= longest) return text;
  const characters = text.length.toLocaleString("en");
  return text.slice(0, longest) + "… [" + characters + " characters]";
}

function tokenText(text) {
  if (text === "") return "∅";
  const shown = visibleText(shortened(text, LONGEST_TOKEN));
  return shown.replace(/\t/g, "⇥\t").replace(/\n/g, "↵\n");
}

function snippet(text, longest) {
  return visibleText(shortened(text, longest)).replace(/\s+/g, " ").trim();
}

const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";

// Three significant digits, small and large numbers as a power of ten, a real minus sign.
function shortNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e4) return String(Number(value.toPrecision(3))).replace("-", "−");
  const [digits, power] = value.toExponential(2).split("e");
  const raised = Array.from(String(Math.abs(Number(power))), (d) => RAISED[d]).join("");
  return digits.replace("-", "−") + "×10" + (Number(power) < 0 ? "⁻" : "") + raised;
}

function signedNumber(value) {
  return (value > 0 ? "+" : "") + shortNumber(value);
}

// A number of a quantity: with its sign where 0 is in the middle of its scale.
function quantityNumber(value, quantity) {
  return quantity.kind === "diverging" ? signedNumber(value) : shortNumber(value);
}

const FLAGS = [
  [1, "clipped high"], [2, "clipped low"], [4, "dual-clipped"], [8, "selected by the method"],
  [16, "truncated response"], [64, "imported"], [128, "not scorable"],
];

function flagText(flags) {
  return FLAGS.filter(([bit]) => flags & bit).map(([, name]) => name).join(", ") || "none";
}

function made(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}
