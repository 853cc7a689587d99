/** All styles of the explorer, on top of those that it shares with the diagram. */

import { CONTROLS, PALETTE } from "../app/styles.js";
import { MAPS } from "../maps/styles.js";

export const STYLES = `
${PALETTE}
html, body { margin: 0; height: 100%; }
.explorer, .explorer *, .explorer *::before { box-sizing: border-box; }
.explorer { --partly: #7a5a00; --bad: #a32121; }
.explorer[data-theme="dark"] { --partly: #e0b84c; --bad: #ff8f8f; }
h1, h2, h3, p, dl, dd, ul, ol, figure { margin: 0; padding: 0; }
ul, ol { list-style: none; }
${CONTROLS}
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.soft { color: var(--soft); font-weight: 400; }
.good { color: var(--good); }
.partly { color: var(--partly); }
.of { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; flex: 1 1 auto; }
.push { margin-left: auto; }
a { color: inherit; text-decoration: underline; text-decoration-color: var(--connects); text-underline-offset: 2px; }
a:hover { text-decoration-color: currentColor; }
.skip { position: absolute; left: 8px; top: -60px; z-index: 9; background: var(--raised); padding: 8px; }
.skip:focus { top: 8px; }

.explorer {
  display: grid; grid-template: minmax(0, 1fr) auto / 184px minmax(0, 1fr) 320px; height: 100vh; height: 100dvh;
}
.explorer > main { overflow: hidden auto; padding: 18px 24px 32px; min-width: 0; }
.explorer > main.wide { grid-column: 2 / -1; }
.explorer > .side {
  overflow: hidden auto; padding: 18px 18px 32px; border-left: 1px solid var(--line); font-size: 13px;
}
.explorer > .layers {
  display: flex; flex-direction: column; min-height: 0; border-right: 1px solid var(--line); padding: 16px 0 12px;
  font-size: 13px;
}
.banner { grid-column: 1 / -1; border-top: 1px solid var(--line); padding: 8px 24px; background: var(--faint); }

.brand { display: flex; padding: 0 12px 10px; font-weight: 640; }
.brand a { flex: 1; padding: 2px 6px; text-decoration: none; overflow-wrap: anywhere; }
.burger, .below, .sheet.tapped { display: none; }
.layers ul { flex: 1 1 auto; overflow: hidden auto; padding: 2px 8px; min-height: 60px; }
.layers li > * { display: flex; gap: 8px; padding: 4px 10px; border-radius: 6px; text-decoration: none; }
.layers a:hover { background: var(--faint); }
.layers [aria-current="page"] { background: var(--faint); font-weight: 640; }
.layers .off { color: var(--soft); font-style: italic; }
.layers .index { padding: 10px 18px; color: var(--soft); font-size: 12px; }
.links { display: flex; flex-wrap: wrap; align-items: center; justify-content: space-between; padding: 0 10px; }
.links > * { white-space: nowrap; }
.links a { padding: 4px 8px; border-radius: 6px; text-decoration: none; }

.bar { height: 6px; border-radius: 3px; background: var(--empty); overflow: hidden; margin: 6px 0; }
.bar i { display: block; height: 100%; background: var(--soft); }

h1 { font-size: 20px; font-weight: 640; letter-spacing: -.005em; line-height: 1.3; overflow-wrap: anywhere; }
h1:focus { outline: none; }
h1 a { text-decoration: none; }
h1 a:hover { text-decoration: underline; }
h2 { font-size: 12.5px; font-weight: 600; color: var(--soft); margin-bottom: 6px; overflow-wrap: anywhere; }
h3 { font-size: 12.5px; font-weight: 600; color: var(--soft); }
section + section, .lead + section, nav + section, h1 + section { margin-top: 22px; }
.side section + section { margin-top: 20px; }
.lead { margin-top: 6px; max-width: 90ch; overflow-wrap: anywhere; }
.title + .lead { max-width: none; }
.lead + .drawing { margin-top: 14px; }
.title + .tools { margin-top: 6px; }
main > .tools { position: sticky; top: -18px; z-index: 2; background: var(--ground); padding: 6px 0; }
.title { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; }
.title h1 { margin-right: 6px; }
.badge {
  background: var(--faint); border-radius: 4px; padding: 1px 7px; font-size: 12px; font-weight: 600;
  white-space: nowrap;
}
.line { display: flex; align-items: center; gap: 4px 12px; flex-wrap: wrap; min-width: 0; }
.tools { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; margin-bottom: 8px; font-size: 13px; }
.field { display: inline-flex; align-items: center; gap: 6px; color: var(--soft); }
select, input, textarea {
  border: 1px solid var(--line); border-radius: 6px; background: var(--raised); color: var(--ink); padding: 3px 8px;
  min-height: 30px;
}
.quiet { border: 0; background: none; color: var(--soft); padding: 3px 2px; }
.quiet option { background: var(--raised); }
textarea { font: inherit; resize: vertical; width: 100%; display: block; }
:is(input, textarea):disabled { color: var(--soft); opacity: 1; }
::placeholder { color: var(--soft); opacity: 1; }
button { box-shadow: none; }
.plain { padding: 0 6px; min-height: 24px; text-decoration: underline; }
.main-button, .main-button:hover:not(:disabled) {
  background: var(--ink); color: var(--ground); font-weight: 600; padding: 5px 14px; min-height: 32px;
}
.second-button { box-shadow: inset 0 0 0 1px var(--line); padding: 3px 12px; min-height: 30px; color: var(--ink); }
.main-button.small { padding: 2px 12px; min-height: 28px; }
.problem { color: var(--bad); margin: 6px 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; margin-bottom: 6px; }
dt { color: var(--soft); }
dd { overflow-wrap: anywhere; }
code, pre { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre {
  background: var(--faint); border-radius: 6px; padding: 8px 10px; margin: 2px 0 10px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 260px;
}
.side p + p { margin-top: 6px; }
.side p { overflow-wrap: anywhere; }

.lines { white-space: pre; overflow-wrap: normal; }

table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td {
  text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); font-weight: 400;
  white-space: nowrap;
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); }
tbody th { font-weight: 600; }
.scroll { overflow-x: auto; }
.figures tbody th { font-weight: 400; white-space: normal; min-width: 13ch; }
.figures :is(th, td) { white-space: normal; padding: 4px 0 4px 10px; }
.figures :is(th, td):first-child { padding-left: 0; }
.figures .own > * { font-weight: 640; }
.figures caption { text-align: left; padding-bottom: 2px; }
.figures + dl { margin-top: 12px; }

.circuits li { padding: 3px 0; overflow-wrap: anywhere; }
.circuits a { text-decoration: none; }
.circuits .beside-it { margin-left: 8px; color: var(--soft); text-decoration: underline; }
.circuits a:hover { text-decoration: underline; }
.circuits .label { overflow-wrap: anywhere; }
main .circuits li { border-bottom: 1px solid var(--faint); }

.grid { position: relative; }
.grid li { position: absolute; top: 0; height: 196px; contain: strict; }
.cell {
  display: flex; flex-direction: column; gap: 4px; height: 100%; padding: 5px; border-radius: 8px;
  text-decoration: none;
  outline-offset: -2px;
}
.cell:hover { background: var(--faint); }
.cell .line { flex-wrap: nowrap; gap: 5px; font-size: 12.5px; height: 20px; }
.cell .badge { padding: 0 4px; font-size: 11px; flex: none; }
.mosaic { display: grid; grid-template: 1fr 1fr / 1fr 1fr; gap: 2px; flex: 1 1 0; min-height: 0; overflow: hidden; }
.mosaic > * { display: block; width: 100%; height: 100%; object-fit: cover; min-height: 0; background: var(--empty); }
.nothing {
  display: flex; align-items: center; justify-content: center; background: var(--empty); color: var(--soft);
  font-size: 11px; aspect-ratio: 1; overflow: hidden;
}
.waiting { display: block; height: 100%; border-radius: 8px; background: var(--faint); }
.spark { display: block; width: 100%; height: 20px; flex: none; border-bottom: 1px solid var(--line); }
.below { fill: var(--connects); }
.above { fill: var(--excites); }

.tabs { display: flex; flex-wrap: wrap; gap: 2px; }
.tabs button { border-radius: 6px 6px 0 0; }
.tabs button[aria-selected="true"] { color: var(--ink); font-weight: 600; box-shadow: inset 0 -2px 0 var(--ink); }
.examples {
  display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; margin-bottom: 8px; max-width: 900px;
}
.crop { display: block; width: 100%; padding: 3px; text-align: left; border-radius: 6px; }
.crop .line { flex-wrap: nowrap; gap: 6px; font-size: 12px; padding: 2px 1px 0; }
.crop[aria-pressed="true"] { box-shadow: 0 0 0 2px var(--ink); }
.context {
  position: relative; display: block; aspect-ratio: 1; overflow: hidden; border-radius: 4px;
  background: var(--empty);
}
.context > img, .context > .nothing { display: block; width: 100%; height: 100%; object-fit: fill; }
.frame {
  position: absolute; border: 2px solid #fff; box-shadow: 0 0 0 1px #1f1f1f, inset 0 0 0 1px rgba(20, 20, 15, .55);
  pointer-events: none;
}
.map { margin-top: 8px; }
.map canvas { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
figcaption { color: var(--soft); font-size: 12px; margin-top: 3px; }

.pair { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 0 32px; margin-top: 22px; }
.pair section { margin: 0; }
.pair section + section { margin-top: 22px; }
.pair + section { margin-top: 22px; }
.row { display: flex; flex-wrap: wrap; gap: 8px; margin: 4px 0 6px; }
.row a { display: block; text-decoration: none; font-size: 12px; }
.row :is(img, .nothing) { display: block; width: 62px; height: 62px; border-radius: 4px; object-fit: cover; }
.split .row :is(img, .nothing) { width: 72px; height: 72px; }
.row a:hover b { text-decoration: underline; }
.feature { display: grid; grid-template-columns: 128px minmax(0, 1fr); gap: 12px; align-items: start; }
.feature :is(img, .nothing) { display: block; width: 100%; border-radius: 4px; }
.split .tools { margin-top: 8px; }
.tools .work { margin: 0; }
.split .group { margin-top: 12px; }
.cross { width: auto; margin-bottom: 6px; }
.cross th { font-weight: 400; }
.cross .own { background: var(--faint); }

.curve { display: block; width: 100%; max-width: 480px; overflow: visible; }
.curve path { fill: none; }
.curve text { fill: var(--soft); font-size: 11px; }
.curve .rule { stroke: var(--faint); }
.curve .own { stroke: var(--excites); stroke-width: 2; }
.curve .random { stroke: var(--soft); stroke-width: 1.5; }
.curve .average { stroke: var(--soft); stroke-dasharray: 5 4; }
.stop { cursor: pointer; outline-offset: 0; }
.stop circle { fill: var(--excites); }
.stop .room { fill: transparent; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--soft); font-size: 12px; margin-top: 4px; }
.keys span::before {
  content: ""; display: inline-block; width: 16px; border-top: 2px solid var(--soft); margin-right: 6px;
  vertical-align: middle;
}
.keys .own::before { border-color: var(--excites); }
.keys .average::before { border-top-style: dashed; }
.stop-card { margin: 6px 0; }

.values svg {
  display: block; width: 100%; max-width: 560px; touch-action: pan-y; cursor: crosshair; margin-bottom: 6px;
}
.values text { fill: var(--soft); font-size: 11px; }
.zero { stroke: var(--soft); stroke-dasharray: 2 3; fill: none; }
.brush { fill: var(--empty); }
.values input { width: 9ch; }
.facts { font-size: 13px; margin-top: 10px; }

.find { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 10px; align-items: end; }
.find label { display: grid; gap: 2px; color: var(--soft); font-size: 12px; min-width: 0; }
.find :is(select, input) { width: 100%; max-width: none; font-size: 13px; }
.find .both-columns { grid-column: 1 / -1; }
.find p { grid-column: 1 / -1; font-size: 12px; }
.own-jobs li { margin-top: 8px; }
.progress p { overflow-wrap: anywhere; }
.star { font-size: 17px; line-height: 1; padding: 2px 6px; color: var(--ink); }
.note { display: grid; gap: 6px; }
.note .line { flex-wrap: nowrap; gap: 4px; }
.note input { flex: 1; min-width: 0; }
.both {
  border: 1px solid var(--line); border-radius: 6px; padding: 8px; display: grid; gap: 4px;
  overflow-wrap: anywhere;
}
.jobs li { padding: 6px 0; border-bottom: 1px solid var(--faint); max-width: 90ch; }

/* Clipped, not hidden: the panel of a narrow screen sticks to the bottom of the window. */
.drawing { margin-top: 14px; border: 1px solid var(--line); border-radius: 8px; overflow: clip; min-height: 120px; }
.title + .of-two { --verdict: 13px; margin-top: 4px; } /* their sentence has a line more */
.drawing ::part(theme) { display: none; }
.contrast { font-size: 13px; }
.contrast select { max-width: 32ch; }
.two { display: grid; grid-template-columns: 220px 220px minmax(0, 70ch); gap: 12px 20px; margin: 6px 0 12px; }
.two p + p { margin-top: 6px; }
.contrast .tabs [aria-pressed="true"] { color: var(--ink); box-shadow: inset 0 -2px 0 var(--ink); font-weight: 600; }
.contrast .pair { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); margin-top: 10px; max-width: 1100px; }
.contrast .pair section + section { margin-top: 0; }
.differing :is(th, td) { font-variant-numeric: tabular-nums; }
.differing .share { position: relative; width: 25%; }
.share i { position: absolute; top: 7px; bottom: 7px; left: 50%; background: var(--excites); }
.share .less { left: auto; right: 50%; background: var(--inhibits); }
.role { margin-top: 10px; }
.role > div { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 4px; }
.role img { display: block; border-radius: 3px; object-fit: cover; }
.undrawn { padding: 28px 24px; max-width: 60ch; display: grid; gap: 8px; }
.work { margin-top: 6px; }
.work + p { margin-top: 12px; }
.drawing + .controls { margin-top: 8px; }
.controls .work + p, .note + p { margin-top: 6px; }
.work .progress { margin-bottom: 8px; }
.columns {
  display: grid; grid-template-columns: minmax(0, 1.3fr) minmax(0, 1.2fr) minmax(0, 1fr); gap: 24px;
  margin-top: 22px; font-size: 13px;
}
.columns .why { margin-bottom: 8px; overflow-wrap: anywhere; }
.columns section { margin: 0; min-width: 0; }
.columns * + h2 { margin-top: 20px; }
.field input[type="checkbox"] { min-height: 0; width: 16px; height: 16px; accent-color: var(--ink); flex: none; }
.columns .figures + p { margin-top: 6px; }
.beside { width: auto; margin-top: 10px; }
.beside :is(th, td) { min-width: 16ch; }
.whole { display: block; width: 100%; border-radius: 4px; }
.at-point { display: grid; grid-template-columns: minmax(240px, 2fr) 3fr; gap: 24px; margin-top: 12px; }
.at-point figure { position: sticky; top: 0; align-self: start; }
.at-point section { margin: 0; }
.at-point .lead { margin: 0; }
.pointed { position: relative; display: block; width: 100%; padding: 0; cursor: crosshair; border-radius: 4px; }
.pointed canvas {
  position: absolute; inset: 0; width: 100%; height: 100%; opacity: .72; image-rendering: pixelated;
  border-radius: 4px;
}
.pointed .frame { z-index: 1; }
.pin {
  position: absolute; width: 16px; height: 16px; margin: -8px 0 0 -8px; border: 2px solid #fff; border-radius: 50%;
  box-shadow: 0 0 0 1px #1f1f1f, inset 0 0 0 1px #1f1f1f; pointer-events: none;
}
.strongest { margin-bottom: 8px; }
.strongest :is(th, td) { text-align: left; white-space: normal; padding: 5px 0; vertical-align: baseline; }
.strongest th { width: 8ch; padding-right: 12px; white-space: nowrap; }
.chip {
  display: inline-block; padding: 2px 8px; margin: 1px 2px 1px 0; border-radius: 6px; text-decoration: none;
  background: var(--faint);
}
.chip:hover, .chip[aria-current] { background: var(--empty); }
.chip[aria-current] { box-shadow: 0 0 0 2px var(--ink); }
${MAPS}

@media (max-width: 1180px) {
  .explorer { grid-template-columns: 160px minmax(0, 1fr) 280px; }
  .explorer > main { padding: 18px 18px 32px; }
  .columns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .pair { grid-template-columns: minmax(0, 1fr); gap: 22px; }
}
/* Narrow: one column, and the page scrolls. */
@media (max-width: 900px) {
  .explorer { display: block; height: auto; min-height: 100vh; }
  .explorer > main, .explorer > .side { overflow: visible; border: 0; padding: 14px 16px 20px; }
  .explorer > .side { border-top: 1px solid var(--line); }
  .explorer > .layers { border: 0; border-bottom: 1px solid var(--line); padding: 8px 8px; }
  .brand { padding: 0; align-items: center; }
  .burger { display: block; }
  .below { display: inline; }
  .layers[data-open="false"] :is(ul, .index, .links) { display: none; }
  .layers ul { max-height: 50vh; display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
  .banner { position: sticky; bottom: 0; z-index: 6; }
  /* What was chosen is a sheet at the bottom of the window: the panel is far below. */
  .sheet {
    position: fixed; inset: auto 0 0; z-index: 5; max-height: 50vh; overflow: hidden auto; background: var(--raised);
    padding: 8px 16px calc(10px + env(safe-area-inset-bottom)); box-shadow: var(--shadow); font-size: 13px;
  }
  .sheet .views { display: grid; grid-template-columns: repeat(2, minmax(0, 260px)); gap: 12px; }
  .sheet .map { margin: 0; }
  :root:has(.sheet:not(.tapped)) { scroll-padding-bottom: 50vh; }
  .explorer:has(.sheet:not(.tapped)) { padding-bottom: 50vh; }
}
@media (max-width: 620px) {
  .examples { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .columns, .at-point, .contrast .pair { grid-template-columns: minmax(0, 1fr); }
  .two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .contrast .pair section + section { margin-top: 22px; }
  .two > div { grid-column: 1 / -1; }
  .at-point figure { position: static; }
  .sheet.tapped { display: block; }
  .at-point .leads { display: none; }
  :root:has(.sheet) { scroll-padding-bottom: 50vh; }
  .explorer:has(.sheet) { padding-bottom: 50vh; }
  .beside :is(th, td) { min-width: 8ch; }
  .all-layers :is(th, td):nth-child(2) { display: none; }
  .drawing { margin-inline: -16px; border-inline: 0; border-radius: 0; }
}
@media (pointer: coarse) {
  button, select, input { min-height: 40px; }
  .layers li > * { padding-block: 9px; }
  :is(.circuits, .tools, .beside, .all-layers) a, .line > a, .side p > a { display: inline-block; padding-block: 10px; }
  .circuits li { padding-block: 0; }
  .chip { padding-block: 10px; margin-block: 3px; }
}
`;
