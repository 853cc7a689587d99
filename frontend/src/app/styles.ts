/** All styles of the app, for its shadow root. Colors have AA contrast with their background in both themes. */

import { DARK, LIGHT } from "../core/color.js";
import { DIM } from "../core/svg.js";

/** The colors and the font of an element of class `app`, in both themes. The explorer has them too. */
export const PALETTE = `
.app {
  --ground: ${LIGHT.background}; --raised: ${LIGHT.background}; --ink: ${LIGHT.text}; --soft: #62625d; --line: #dcdcd7;
  --faint: #f3f3f0; --empty: #e9e9e5;
  --excites: ${LIGHT.excites}; --inhibits: ${LIGHT.inhibits}; --connects: ${LIGHT.connects}; --focus: #1a5fb4;
  --good: #22663a;
  --shadow: 0 6px 28px rgba(20, 20, 15, .16), 0 1px 3px rgba(20, 20, 15, .12);
  position: relative; color: var(--ink); background: var(--ground); color-scheme: light; min-width: 0;
  font: 14px/1.45 Inter, system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
.app[data-theme="dark"] {
  --ground: ${DARK.background}; --raised: #232328; --ink: ${DARK.text}; --soft: ${DARK.muted}; --line: #383a41;
  --faint: #1e2025; --empty: #2a2c32;
  --excites: ${DARK.excites}; --inhibits: ${DARK.inhibits}; --connects: ${DARK.connects}; --focus: #78aeff;
  --good: #7fd49a;
  --shadow: 0 6px 28px rgba(0, 0, 0, .6), 0 0 0 1px #3a3c43;
  color-scheme: dark;
}
`;

/** How buttons and other controls look, here and in the explorer. */
export const CONTROLS = `
button, select, input { font: inherit; color: inherit; }
button, select {
  background: none; border: 0; border-radius: 6px; padding: 3px 8px; min-height: 28px; cursor: pointer;
  color: var(--soft);
}
button:hover:not(:disabled), select:hover, summary:hover { background: var(--faint); color: var(--ink); }
button[aria-pressed="true"], button[aria-expanded="true"], button[aria-checked="true"] {
  color: var(--ink); background: var(--faint);
}
button[aria-checked="true"] { font-weight: 600; }
button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 1px; }
`;

export const STYLES = `
:host { display: block; container-type: inline-size; }
${PALETTE}.app *, .app *::before { box-sizing: border-box; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
h1, h2, h3, p, dl, dd, ul, ol { margin: 0; padding: 0; }
ul, ol { list-style: none; }

.app { display: grid; grid-template: auto minmax(0, 1fr) / minmax(0, 1fr) 320px; }
.app[data-host="page"] { height: 100vh; min-height: 540px; }
header { grid-column: 1 / -1; padding: 12px 24px 0; border-bottom: 1px solid var(--line); }
.main { display: flex; flex-direction: column; min-width: 0; min-height: 0; }
.stage-frame { position: relative; flex: 1 1 0; min-height: 0; overflow: hidden; }
:where([data-host="widget"]) .stage-frame { flex: none; height: 560px; }
.heading { display: flex; gap: 4px 24px; align-items: flex-start; justify-content: space-between; }
.heading > div:first-child { flex: 1 1 520px; min-width: 0; }
.menus { display: flex; flex-wrap: wrap; justify-content: flex-end; align-items: center; font-size: 13px; }
h1 { font-size: 18px; font-weight: 640; line-height: 1.3; overflow-wrap: anywhere; }
[part="verdict"] { font-size: 14px; line-height: 1.4; margin-top: 2px; max-width: 130ch; overflow-wrap: anywhere; }
.kept { color: var(--good); }
.legend {
  display: flex; flex-wrap: wrap; gap: 0 20px; padding: 2px 24px 4px; font-size: 12px; color: var(--soft);
  align-items: center;
}
.legend li { display: flex; align-items: center; gap: 7px; }
.legend button { padding: 0 4px; min-height: 24px; min-width: 24px; }

.bar { display: flex; flex-wrap: wrap; gap: 2px 20px; align-items: center; margin-top: 4px; font-size: 13px; }
.cluster { display: flex; flex-wrap: wrap; gap: 2px 6px; align-items: center; }
.label { color: var(--soft); font-size: 12px; margin-right: 2px; }
.push { margin-left: auto; }
.cluster > .segments button, .push button { box-shadow: inset 0 0 0 1px var(--line); border-radius: 0; }
[part="image"] { max-width: 22ch; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.burger { display: none; }
.cluster > .segments button + button, .push button + button { margin-left: -1px; }
.segments button:first-child { border-radius: 6px 0 0 6px !important; }
.segments button:last-child { border-radius: 0 6px 6px 0 !important; }
${CONTROLS}select {
  appearance: none; field-sizing: content; max-width: 22ch; text-overflow: ellipsis; color: var(--ink);
  border-bottom: 1px dotted var(--soft); border-radius: 6px 6px 0 0;
}
option { background: var(--raised); color: var(--ink); }
.segments { display: inline-flex; }
.field { display: inline-flex; align-items: center; gap: 6px; color: var(--soft); white-space: nowrap; }
.field output { color: var(--ink); min-width: 13ch; }
input[type="range"] { width: 120px; height: 28px; margin: 0; accent-color: var(--connects); cursor: pointer; }
input[type="text"] {
  border: 0; border-bottom: 1px solid var(--line); border-radius: 4px 4px 0 0; background: none; padding: 3px 6px;
  min-height: 28px;
}
textarea {
  font: inherit; color: inherit; background: none; border: 1px solid var(--line); border-radius: 4px; padding: 3px 6px;
  resize: vertical;
}
.notes { display: grid; gap: 4px; margin-top: 6px; }
[part="search"] { width: 17ch; }
::placeholder { color: var(--soft); opacity: 1; }

.pop { position: relative; display: inline-block; }
.panel {
  position: absolute; z-index: 7; top: calc(100% + 6px); left: 0; min-width: 230px; max-width: min(420px, 90vw);
  max-height: 70vh; overflow: auto; padding: 10px; background: var(--raised); border-radius: 10px;
  box-shadow: var(--shadow);
}
.panel.right { left: auto; right: 0; }
.panel.up { top: auto; bottom: calc(100% + 6px); }
.panel > button { display: block; width: 100%; text-align: left; color: var(--ink); }
.panel .row {
  display: flex; align-items: center; justify-content: space-between; gap: 16px; padding: 2px 8px; color: var(--soft);
}
.panel .row > :last-child { white-space: nowrap; flex: none; }
.panel small { font-weight: 400; display: block; color: var(--soft); font-size: 12px; }
.panel hr { border: 0; border-top: 1px solid var(--line); margin: 8px; }
.panel p { padding: 4px 8px; }
.panel h2 { font-size: 13px; font-weight: 640; padding: 4px 8px; }
.panel.about { width: 420px; font-size: 13px; }
.panel.about dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; padding: 4px 8px; }
dt { color: var(--soft); }
.panel.about dd { overflow-wrap: anywhere; }
.thumbs {
  display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; align-items: start; width: 380px;
  max-width: 100%;
}
.thumbs button { padding: 3px; min-height: 0; border-radius: 8px; }
.thumbs img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px; }
.thumbs :is(span, small) { display: block; font-size: 11px; line-height: 1.3; overflow-wrap: anywhere; }
.thumbs span { color: var(--ink); }
.thumbs button[aria-pressed="true"] { box-shadow: 0 0 0 2px var(--ink); }
.results { width: 260px; }
.results li { padding: 5px 8px; border-radius: 6px; cursor: pointer; min-height: 28px; }
.results li[aria-selected="true"] { background: var(--faint); }
.results li span { color: var(--soft); }

.state {
  display: flex; flex-wrap: wrap; gap: 2px 6px; align-items: center; min-height: 30px; padding: 1px 0;
  font-size: 12.5px; color: var(--soft);
}
.state b { color: var(--ink); font-weight: 600; }
.state .notice { flex-basis: 100%; color: var(--ink); font-weight: 600; overflow-wrap: anywhere; }
.state .group { display: inline-flex; flex-wrap: wrap; align-items: center; gap: 4px; margin-right: 14px; }

.side { display: flex; flex-direction: column; min-width: 0; min-height: 0; border-left: 1px solid var(--line); }
:where([data-host="widget"]) .side { max-height: 640px; }
.handle { display: none; }
.details { overflow-y: auto; overflow-x: hidden; padding: 12px 16px; font-size: 12.5px; outline-offset: -2px; }
.details > * + * { margin-top: 12px; }
.details h2 { font-size: 12px; font-weight: 600; color: var(--soft); margin-bottom: 5px; overflow-wrap: anywhere; }
.crops { display: grid; grid-template-columns: repeat(3, 64px); gap: 4px; }
.heads { display: flex; align-items: center; gap: 8px; }
.details .heads h2 { margin: 0; }
.heads button { padding: 0 7px; min-height: 24px; font-size: 12px; }
.heads button[aria-pressed="true"] { box-shadow: inset 0 -2px 0 var(--ink); }
.crop { padding: 0; min-height: 0; border-radius: 2px; cursor: zoom-in; pointer-events: auto; }
.crop[aria-pressed="true"] { outline: 2px solid var(--ink); outline-offset: 1px; }
.hatch { stroke: var(--soft); fill: none; }
[part="whole"] button { padding: 2px 8px 2px 0; }
.details .pictures { display: flex; gap: 8px; margin-top: 6px; flex-wrap: wrap; }
.details figure { margin: 0; width: min-content; min-width: 64px; overflow-wrap: anywhere; }
.details figure.wide { width: 100%; }
.details svg { display: block; border-radius: 2px; }
.soft { color: var(--soft); }
.details p.soft { font-size: 11.5px; margin-top: 4px; }
figcaption { color: var(--soft); font-size: 11px; margin-top: 3px; }
.details img { display: block; border-radius: 3px; }
.framed { position: relative; width: max-content; }
.framed i { position: absolute; border: 1px dashed rgba(20, 20, 15, .62); pointer-events: none; }
.scale { position: relative; flex: 0 0 280px; height: 26px; margin-bottom: 2px; }
.scale i { display: block; height: 8px; border-radius: 3px; box-shadow: 0 0 0 1px var(--line); }
.scale span {
  position: absolute; top: 9px; transform: translateX(-50%); font-size: 11px; color: var(--soft); white-space: nowrap;
}
.scale span[style*="left: 0px"], .scale span[style*="left: 0%"] { transform: none; }
.scale span[style*="100%"] { transform: translateX(-100%); }
.figures { width: 100%; font-size: 12px; line-height: 1.3; }
.figures th, .figures td {
  position: static; box-shadow: none; background: none; height: auto; padding: 2px 0 2px 8px;
  border-bottom: 1px solid var(--line); text-align: right; font-weight: 400; white-space: normal;
}
.figures thead th { color: var(--soft); vertical-align: bottom; max-width: 12ch; }
.figures tbody th { text-align: left; }
.figures .own > * { font-weight: 640; }
.figures th:first-child { padding-left: 0; }
.figures tr:hover td { background: none; }

.stage { position: relative; height: 100%; overflow: auto; outline-offset: -2px; }
.drawing { display: grid; justify-content: safe center; align-content: safe center; min-height: 100%; }
.drawing:active { user-select: none; }
.drawing > svg { grid-area: 1 / 1; position: relative; }
.drawing > .edges { will-change: opacity; }
.stage > canvas { display: block; margin: 0 auto; touch-action: none; cursor: grab; }
.stage > canvas:active { cursor: grabbing; }
.zoom {
  position: absolute; right: 28px; bottom: 10px; display: flex; background: var(--ground); border-radius: 8px;
  box-shadow: 0 0 0 1px var(--line);
}
summary { cursor: pointer; }
summary, [part="caption"] { color: var(--soft); font-size: 11.5px; overflow-wrap: anywhere; }
.failure { margin: 48px auto; max-width: 64ch; padding: 0 28px; }
.failure p { margin-top: 8px; color: var(--soft); }

svg text { fill: var(--soft); font-family: inherit; }
.headings tspan:first-of-type { fill: var(--ink); }
.edge { fill: none; stroke: var(--connects); }
.excites > .edge { stroke: var(--excites); }
.inhibits > .edge { stroke: var(--inhibits); }
.legend :is(.both, .onlyA, .onlyB) > .edge { stroke: var(--ink); }
.stub { fill: none; stroke: var(--connects); stroke-width: 1; stroke-dasharray: 1 3; stroke-linecap: round; }
.node { cursor: pointer; outline: none; }
.pictures, .glyphs, .inner, .stubs, .over, .lit-edges { pointer-events: none; }
.node .frame { fill: none; pointer-events: all; stroke: var(--ink); stroke-opacity: .16; stroke-width: 1; }
.blank { fill: var(--empty); }
.picture .under { fill: var(--ground); stroke: var(--connects); stroke-width: 1; }
.picture .sign { stroke: var(--soft); stroke-width: 1.6; fill: none; }
.node .ring { fill: none; stroke: none; }
.node.marked .frame { stroke-opacity: 1; stroke-width: 2; }
.node:hover .frame, .node.near .frame { stroke-opacity: .8; stroke-width: 1.5; }
.node.chosen .ring { stroke: var(--ink); stroke-width: 2; }
.node:focus-visible .ring { stroke: var(--focus); stroke-width: 2.5; }
.node .tilt { stroke: var(--ground); stroke-width: 1.5; }
.node .tilt.excites { fill: var(--excites); }
.node .tilt.inhibits { fill: var(--inhibits); }
.node .pin { fill: var(--ink); stroke: var(--ground); stroke-width: 1.5; }
.node.target text, .node.chosen text { fill: var(--ink); font-weight: 600; }
/* Shapes, not groups: a group that is dimmed is drawn apart first. */
.isolated .picture:not(.lit) :is(image, rect, path), .isolated .node:not(.lit) :is(.frame, text), .isolated .edges,
.glyph.unlit { opacity: ${DIM}; }
.glyph .sheet { fill: var(--ground); stroke-width: 1; }
.more rect { fill: var(--empty); }
.more rect.part { fill: var(--soft); }

.card > h2 { font-size: 14px; font-weight: 640; color: var(--ink); margin: 0; }
[part="back"] { padding: 0 8px 0 0; min-height: 24px; font-size: 12px; }
.card dl { display: grid; grid-template-columns: max-content 1fr; gap: 1px 12px; margin-top: 6px; }
.card h3 { font-size: 12px; font-weight: 600; margin-top: 8px; color: var(--soft); }
.card ol li { display: flex; gap: 8px; align-items: center; }
.card ol li .share { margin-left: auto; color: var(--soft); padding-left: 14px; }
.swatch {
  display: inline-block; width: 14px; height: 3px; border-radius: 1px; background: var(--connects); flex: none;
}
.swatch.excites { background: var(--excites); }
.swatch.inhibits { background: var(--inhibits); }
.map { image-rendering: pixelated; }

.table { display: flex; flex-direction: column; height: 100%; padding: 0 24px; }
.table .rows {
  flex: 1 1 0; min-height: 0; overflow: auto; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
}
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th {
  position: sticky; top: 0; z-index: 1; background: var(--ground); text-align: right; font-weight: 600;
  padding: 2px 4px; white-space: nowrap; box-shadow: 0 1px 0 var(--line);
}
th:first-child, td:first-child { text-align: left; }
th:first-child { padding-left: 4px; }
th button { color: var(--ink); font-weight: 600; padding: 3px 6px; }
td { text-align: right; padding: 0 10px; height: 30px; white-space: nowrap; border-bottom: 1px solid var(--faint); }
td svg { display: inline-block; vertical-align: middle; }
tr:hover td { background: var(--faint); }
.excites-text { color: var(--excites); }
.inhibits-text { color: var(--inhibits); }

/* Narrow: the page scrolls, and the panel is a sheet at its bottom. */
@container (max-width: 799px) {
  .app { display: block; }
  .app[data-host="page"] { height: auto; min-height: 100vh; }
  header { padding: 10px 14px 0; }
  .heading { flex-direction: column; }
  .heading > div:first-child { flex: none; }
  .menus { justify-content: flex-start; margin-left: -8px; }
  .legend { padding: 2px 14px 12px; }
  .burger { display: block; padding-left: 0; }
  header[data-menu="false"] .menus, header[data-menu="false"] .bar, .hint { display: none; }
  .push { margin-left: 0; }
  .field output { min-width: 0; }
  .stage-frame { flex: none; height: max(380px, 58vh); overflow: visible; }
  .stage-frame:has(> .zoom) { height: max(330px, 58vh - 52px); margin-bottom: 52px; }
  .zoom { right: 14px; bottom: -46px; }
  .side {
    position: sticky; bottom: 0; z-index: 6; max-height: 48vh; border: 0; border-top: 1px solid var(--line);
    background: var(--raised); box-shadow: var(--shadow);
  }
  .handle {
    display: block; flex: none; width: 100%; text-align: left; padding: 8px 16px; min-height: 44px; color: var(--ink);
  }
  .handle::after { content: "\\25B4"; float: right; }
  .side[data-open="true"] .handle::after { content: "\\25BE"; }
  .side[data-open="false"] .details { display: none; }
}
@media (pointer: coarse) {
  button, select, input { min-height: 40px; }
  .zoom button { min-width: 44px; min-height: 44px; }
}
`;
