// What the pages of maps share. All text from outside enters as text nodes.

// Characters that change how other text reads are not shown, though names are copied with them.
const plain = (text) =>
  String(text).replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
const COLORS = ["#c2570c", "#0072b2", "#009e73", "#8a5bd6", "#cc79a7", "#56b4e9", "#e69f00", "#7a7a00", "#a0522d"];

/** Make an element; a property that is a function is a listener, and children are elements or texts. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function between(a, b, share) {
  const [one, other] = [a, b].map((text) => [1, 3, 5].map((n) => Number.parseInt(text.slice(n, n + 2), 16)));
  return `rgb(${one.map((value, n) => Math.round(value + share * (other[n] - value))).join(" ")})`;
}

// Colors are those of the reader's system or, in the explorer, those that were chosen there: what the style has for dark
// systems is then for all or for none.
const DARK = "(prefers-color-scheme: dark)";
const ofDark = [...document.styleSheets]
  .flatMap((sheet) => [...sheet.cssRules])
  .filter((rule) => rule.media?.mediaText === DARK);

function chosenTheme() {
  try {
    return localStorage.getItem("convcircuits-theme");
  } catch {
    return null; // the browser keeps nothing
  }
}

let ramp = [];
let inks = {};
function readColors() {
  const theme = chosenTheme();
  for (const { media } of ofDark) media.mediaText = theme === "dark" ? "all" : theme === "light" ? "not all" : DARK;
  document.documentElement.style.colorScheme = theme === "dark" || theme === "light" ? theme : "";
  ramp = [color("--weak"), color("--middle"), color("--strong")];
  inks = { ground: color("--ground"), ink: color("--ink"), soft: color("--soft"), none: color("--none") };
}

/** Read the colors, and call back whenever they are others. */
function followColors(changed) {
  const read = () => {
    readColors();
    changed();
  };
  matchMedia(DARK).addEventListener("change", read);
  addEventListener("storage", read); // another tab has chosen some
  readColors();
}
