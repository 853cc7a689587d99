/** The units of a layer, as a grid of which only the rows in sight are drawn. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, MEASURES, type Measure, type UnitPage, type UnitRow } from "./api.js";
import { layerOf, missing, useLoaded, version } from "./live.js";
import { go, scroller } from "./navigation.js";
import { atlasPlace, type Place, unitPlace } from "./route.js";
import { layerName, MEASURE_NAMES, r2Text, shareText, value } from "./text.js";
import { BORDER, Fact, Picture, Problem, Sparkline, To } from "./ui.js";
import { FIRST } from "./unit.js";
import { arrow, pagesOf, type Rows, rowsOf } from "./window.js";

const CELL = { width: 132, height: 196, gap: 12 }; // as in the styles
const PAGE = 64;
const CROP = 120; // px, for screens with two pixels to one
const RESTS = 40; // ms on a unit, with the pointer or the keyboard, after which what its page shows is asked for

type LayerPlace = Extract<Place, { page: "layer" }>;

export function LayerPage({ place }: { place: LayerPlace }) {
  const layer = layerOf(place.layer);
  const why = missing(place.layer);
  const name = layerName(layer, place.layer);
  return (
    <>
      <main id="main">
        <div class="title">
          <h1 tabIndex={-1}>{plain(name)}</h1>
          {layer && name !== layer.name && <span class="soft">{plain(layer.name)}</span>}
          {layer?.field && <span class="soft">sees {layer.field.join(" × ")} px</span>}
        </div>
        {why && (layer ? <p class="lead">{plain(why)}</p> : <Problem text={why} />)}
        {layer && !why && <Units place={place} total={layer.units} key={layer.name} />}
      </main>
      <aside class="side" aria-label="the layer">
        {layer && (
          <section>
            <h2>Layer</h2>
            <dl>
              <Fact name="module" value={plain(layer.name)} />
              <Fact name="kind" value={plain(layer.kind)} />
              <Fact name="units" value={layer.units} />
              <Fact name="map" value={layer.map.join(" × ") || "none"} />
              <Fact name="sees" value={layer.field ? `${layer.field.join(" × ")} px` : NONE} />
              <Fact name="figures of" value={layer.images ? plural(layer.images, "photograph") : NONE} />
            </dl>
          </section>
        )}
        {layer && <Atlases layer={layer.name} />}
        <section>
          <h2>What is shown</h2>
          <p>
            Four photographs on which a unit is highest, away from the border: the part that it sees, hatched beyond the
            image.
          </p>
          <p>The bars count how often it has which value; orange is above 0.</p>
          <p>
            <b class="badge">border</b> on more than half of the photographs it is highest where it sees padding, so
            what drives it may be the border.
          </p>
          <p>
            <b class="badge">dead</b> never above 0 on these photographs.
          </p>
        </section>
      </aside>
    </>
  );
}

/** The atlases of the layer: all its units' circuits, and what they share. */
function Atlases({ layer }: { layer: string }) {
  const { value: found, error } = useLoaded("", version.circuits.value, (signal) => api.atlases(signal));
  const own = (found ?? []).filter((each) => each.layer === layer);
  const broken = (found ?? []).filter((each) => !each.layer); // of an unknown layer, as it cannot be read
  if (own.length + broken.length === 0 && !error) return null;
  return (
    <section part="atlases">
      <h2>Atlas: what its units' circuits share</h2>
      <Problem text={error} />
      <ul class="circuits">
        {own.map(({ id, name, units, criterion, problem }) => (
          <li key={id}>
            {problem ? (
              <span class="soft">
                {plain(name)}: {plain(problem)}
              </span>
            ) : (
              <>
                <To place={atlasPlace(id)}>{plain(name)}</To>{" "}
                <span class="soft">
                  {plural(units, "circuit")} by {plain(criterion)}
                </span>
              </>
            )}
          </li>
        ))}
        {broken.map(({ id, name, problem }) => (
          <li key={id} class="soft">
            {plain(name)}: {plain(problem)}
          </li>
        ))}
      </ul>
    </section>
  );
}

const NONE = "not indexed yet";

function Units({ place, total }: { place: LayerPlace; total: number }) {
  const grid = useRef<HTMLUListElement>(null);
  const [rows, see] = useState<Rows>({ columns: 1, rows: 0, height: 1, first: 0, last: 0 });
  const [pages, put] = useState<{ of: string; found: Map<number, UnitPage> }>({ of: "", found: new Map() });
  const [error, say] = useState("");
  const focus = useRef<number | null>(null);
  const resting = useRef<{ on: Element | null; timer?: ReturnType<typeof setTimeout> }>({ on: null });
  const { layer, sort, lowest } = place;
  const state = version.index.value + version.notes.value;
  const of = `${layer} ${sort} ${lowest}`;
  const found = pages.of === of ? pages.found : new Map<number, UnitPage>();

  useLayoutEffect(() => {
    const look = () => {
      const { top, width } = grid.current!.getBoundingClientRect();
      const next = rowsOf(total, width, top, innerHeight, CELL);
      see((now) => (JSON.stringify(now) === JSON.stringify(next) ? now : next));
    };
    look();
    const observer = new ResizeObserver(look);
    observer.observe(grid.current!);
    addEventListener("scroll", look, { capture: true, passive: true });
    return () => {
      observer.disconnect();
      removeEventListener("scroll", look, { capture: true });
    };
  }, [total]);

  const [first, last] = [rows.first * rows.columns, Math.min(total, rows.last * rows.columns)];
  const wanted = pagesOf(first, last, PAGE).join();
  useEffect(() => {
    if (!wanted) return;
    const control = new AbortController();
    for (const page of wanted.split(",").map(Number)) {
      api
        .units(layer, { sort, lowest_first: lowest, offset: page * PAGE, limit: PAGE }, control.signal)
        .then((answer) => {
          say("");
          put((now) => ({ of, found: new Map(now.of === of ? now.found : []).set(page, answer) }));
        })
        .catch((problem: Error) => {
          if (!control.signal.aborted) say(problem.message);
        });
    }
    return () => control.abort();
  }, [of, state, wanted]);

  useEffect(() => () => clearTimeout(resting.current.timer), []);

  useEffect(() => {
    if (focus.current === null) return;
    const link = grid.current!.querySelector<HTMLElement>(`[data-at="${focus.current}"] a`);
    if (!link) return;
    focus.current = null;
    link.focus();
  });

  const sorted = (part: Partial<LayerPlace>) => {
    go({ ...place, ...part });
    scroller().scrollTop = 0;
  };

  const key = (event: KeyboardEvent) => {
    const at = Number((event.target as Element).closest<HTMLElement>("[data-at]")?.dataset.at ?? -1);
    const to =
      at < 0 || event.ctrlKey || event.altKey || event.metaKey ? null : arrow(event.key, at, rows.columns, total);
    if (to === null) return;
    event.preventDefault();
    focus.current = to;
    const link = grid.current!.querySelector<HTMLElement>(`[data-at="${to}"] a`);
    if (link) {
      focus.current = null;
      link.focus();
      return;
    }
    const row = Math.floor(to / rows.columns);
    const anchor = grid.current!.getBoundingClientRect().top;
    scroller().scrollTop += anchor + row * rows.height - innerHeight / 2;
  };

  const rowAt = (at: number) => found.get(Math.floor(at / PAGE))?.units[at % PAGE];
  const pointed = (event: Event) => {
    const cell = (event.target as Element).closest<HTMLElement>("[data-at]");
    if (cell === resting.current.on) return;
    clearTimeout(resting.current.timer);
    const unit = cell ? rowAt(Number(cell.dataset.at))?.figures.unit : undefined;
    const ahead = () => unit !== undefined && api.unitAhead(layerOf(layer)?.name ?? layer, unit, FIRST);
    resting.current = { on: cell, timer: setTimeout(ahead, RESTS) };
  };

  const cells = Array.from({ length: Math.max(0, last - first) }, (_, i) => first + i);
  const any = [...found.values()][0];
  return (
    <>
      <div class="tools">
        <label class="field">
          <span>sort by</span>
          <select part="sort" value={sort} onChange={(event) => sorted({ sort: event.currentTarget.value as Measure })}>
            {MEASURES.map((each) => (
              <option value={each} key={each}>
                {MEASURE_NAMES[each]}
              </option>
            ))}
          </select>
        </label>
        {sort !== "unit" && (
          <button type="button" class="second-button" aria-pressed={lowest} onClick={() => sorted({ lowest: !lowest })}>
            lowest first
          </button>
        )}
        <span class="soft push">
          {any &&
            `${plural(any.total, "unit")}, on ${plural(any.images, "photograph")}${any.complete ? "" : " so far"}`}
        </span>
      </div>
      <Problem text={error} />
      <ul
        class="grid"
        ref={grid}
        style={{ height: `${rows.rows * rows.height}px` }}
        onKeyDown={key}
        onPointerOver={pointed}
        onFocusIn={pointed}
        aria-label={`units of ${layer}`}
      >
        {cells.map((at) => {
          const row = rowAt(at);
          return (
            <li
              key={row ? row.figures.unit : `at ${at}`}
              data-at={at}
              aria-setsize={total}
              aria-posinset={at + 1}
              style={{
                transform: `translateY(${Math.floor(at / rows.columns) * rows.height}px)`,
                left: `calc(${at % rows.columns} * (100% + ${CELL.gap}px) / ${rows.columns})`,
                width: `calc((100% + ${CELL.gap}px) / ${rows.columns} - ${CELL.gap}px)`,
              }}
            >
              {row ? <Cell layer={layer} row={row} sort={sort} /> : <span class="waiting" />}
            </li>
          );
        })}
      </ul>
    </>
  );
}

function Cell({ layer, row, sort }: { layer: string; row: UnitRow; sort: Measure }) {
  const { figures, top, histogram, zero, label, star } = row;
  const border = (figures.at_border ?? 0) > BORDER;
  return (
    <To place={unitPlace(layer, figures.unit)} class="cell">
      <span class="mosaic">
        {[0, 1, 2, 3].map((i) =>
          top[i] ? (
            <Picture key={i} src={api.thumb(top[i].photo, CROP, top[i].box)} alt="" />
          ) : (
            <span class="nothing" key={i} />
          ),
        )}
      </span>
      <span class="line">
        <b>
          <span class="hidden">unit </span>
          {figures.unit}
        </b>
        {star && (
          <span role="img" aria-label="starred">
            ★
          </span>
        )}
        <span class="soft of">{sort === "unit" ? plain(label) : measured(figures, sort)}</span>
        {figures.dead ? <b class="badge">dead</b> : border && <b class="badge">border</b>}
      </span>
      <Sparkline counts={histogram} zero={zero} />
    </To>
  );
}

function measured(figures: UnitRow["figures"], sort: Measure): string {
  const figure = figures[sort];
  if (sort === "average_map_r2") return r2Text(figure);
  if (sort === "highest" || sort === "rectified_variance") return figure === null ? "–" : value(figure);
  return shareText(figure);
}
