/** Styles of maps: in the explorer, and with what a page around them needs that is a file. */

import { CONTROLS, PALETTE } from "../app/styles.js";

export const MAPS = `
.plot {
  position: relative; border: 1px solid var(--line); border-radius: 8px; overflow: hidden;
  height: clamp(320px, calc(100dvh - 250px), 1000px);
}
.plot canvas { position: absolute; inset: 0; width: 100%; height: 100%; cursor: default; outline-offset: -3px; }
.plot.drawn-on canvas { cursor: crosshair; touch-action: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: center; color: var(--soft); font-size: 12.5px; }
.tools > .legend { margin-left: 8px; }
.legend button { font-size: 12.5px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 6px; }
.legend .ramp { width: 110px; border-radius: 3px; margin: 0 2px; }
.slider { padding-top: 10px; }
.slider input { display: block; width: 100%; margin: 0; padding: 0; border: 0; accent-color: var(--excites); }
.ticks { display: flex; justify-content: space-between; margin: 0 -2px; }
.ticks button {
  padding: 0 3px; min-height: 24px; font-size: 11.5px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  min-width: 0;
}
.ticks button[aria-pressed="true"] { font-weight: 640; background: none; }
.said { font-size: 13px; padding: 2px 0 4px; }
details { font-size: 12.5px; color: var(--soft); }
summary { cursor: pointer; }
details p { padding: 4px 0; max-width: 90ch; overflow-wrap: anywhere; }
details table { width: auto; }
.card { display: flex; gap: 12px; min-height: 100px; align-items: flex-start; overflow-wrap: anywhere; }
.card > div { min-width: 0; }
.card h3 { color: var(--ink); }
.card :is(img, .nothing) {
  display: block; width: 96px; height: 96px; border-radius: 6px; flex: none; object-fit: cover;
}
.heading { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; justify-content: space-between; }
.heading h2 { margin: 0; }
.heading span { display: flex; gap: 4px; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)); gap: 4px; margin: 4px 0 8px; }
.thumbs :is(img, .nothing) { display: block; width: 100%; aspect-ratio: 1; border-radius: 4px; object-fit: cover; }
.units { display: flex; flex-wrap: wrap; gap: 2px 4px; }
.units li { flex: 1 1 120px; }
.units button { padding: 0 7px; min-height: 24px; background: var(--faint); color: var(--ink); }
.unit-card * + h2 { margin: 12px 0 2px; }
.unit-card p { margin: 4px 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 20px 28px; padding: 16px 0; }
.tables section { margin: 0; min-width: 0; }
.tables .scroll { max-height: 420px; overflow: auto; }
.tables :is(th, td) { padding-inline: 0 10px; }
.tables button { padding: 0 2px; min-height: 22px; text-align: left; color: var(--ink); }
.tables [data-chosen="true"] > * { background: var(--faint); }
@media (max-width: 900px) {
  .plot { height: clamp(280px, 60dvh, 100vw); }
  .card { min-height: 0; }
  .tables .scroll { max-height: 220px; }
}
`;

/** Of a page that is a file. */
export const FILE_STYLES = `
${PALETTE}
html, body { margin: 0; height: 100%; }
.map-file, .map-file * { box-sizing: border-box; }
h1, h2, h3, p, ul { margin: 0; padding: 0; }
ul { list-style: none; }
${CONTROLS}
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.map-file {
  display: grid; grid-template: auto minmax(0, 1fr) / minmax(0, 1fr) 340px; gap: 4px 20px; height: 100vh;
  height: 100dvh; padding: 14px 0 0 28px;
}
header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 2px 24px; align-items: baseline; }
main { overflow: hidden auto; padding: 2px 2px 14px; min-width: 0; }
.side { overflow: hidden auto; padding: 10px 28px 14px 2px; font-size: 13px; }
.side > section + section { margin-top: 14px; }
.side p { overflow-wrap: anywhere; }
.side p + p { margin-top: 6px; }
h1 { font-size: 17px; font-weight: 640; line-height: 1.3; overflow-wrap: anywhere; }
h2, h3 { font-size: 13px; font-weight: 640; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 12.5px; }
a { color: var(--focus); }
.tools { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: center; padding-bottom: 8px; font-size: 13px; }
.field { display: inline-flex; gap: 6px; align-items: center; color: var(--soft); }
button, select { box-shadow: inset 0 0 0 1px var(--line); }
select { background: var(--raised); color: var(--ink); }
.ticks button, .tables button { box-shadow: none; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: right; font-weight: 400; padding: 2px 12px 2px 0; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
thead th { color: var(--soft); }
.scroll { overflow: auto; }
pre {
  margin: 6px 0 0; padding: 8px 10px; background: var(--faint); border-radius: 8px; overflow: auto; max-height: 170px;
  font: 11.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
.heading .soft { flex: 1 1 180px; }
${MAPS}
@media (max-width: 900px) {
  .map-file { display: block; height: auto; padding: 14px 16px; }
  main, .side { overflow: visible; padding: 8px 0; }
}
`;
