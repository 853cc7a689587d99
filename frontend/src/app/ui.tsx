/** Small components that several others use. */

import { Component, type ComponentChildren, createRef } from "preact";
import { heat } from "../core/color.js";
import { type Graph, kernel } from "../core/decode.js";
import { significant } from "../core/format.js";
import { plain } from "../core/text.js";
import type { Cut, Whole } from "../core/types.js";
import { brief } from "./brief.js";
import type { PositionMap } from "./pictures.js";
import type { Store } from "./store.js";

/** A component that only renders again if one of its properties is another object. */
export function pure<P extends object>(render: (props: P) => ComponentChildren) {
  return class extends Component<P> {
    override shouldComponentUpdate(next: P) {
      return (Object.keys(next) as (keyof P)[]).some((name) => next[name] !== this.props[name]);
    }
    override render() {
      return render(this.props as P);
    }
  };
}

/** A tile of an atlas, inside another SVG. */
export function Tile({ store, tile, x, y, size }: { store: Store; tile: number; x: number; y: number; size: number }) {
  const at = store.pictures.at(tile);
  if (!at) return <rect class="blank" x={x} y={y} width={size} height={size} />;
  const side = store.pictures.size;
  const page = store.pictures.pages[at.page]!;
  return (
    <svg x={x} y={y} width={size} height={size} viewBox={`${at.x} ${at.y} ${side} ${side}`} preserveAspectRatio="none">
      <image href={page.url} width={page.columns * side} height={page.rows * side} />
    </svg>
  );
}

interface PictureProps {
  store: Store;
  tile: number;
  size: number;
  label: string;
}

/** A tile as a separate picture; a click shows the whole image that it was cut out of, if the document holds it. */
export function Picture(props: PictureProps) {
  const { store, tile, label } = props;
  const cut = cutOf(store, tile);
  if (!cut) return <Alone {...props} />;
  const name = plain(cut.whole.name);
  return (
    <button
      type="button"
      class="crop"
      data-cut={tile}
      title={name}
      aria-label={`${label}, cut out of ${name}: show it whole`}
      aria-pressed={store.whole.value === tile}
      onClick={(event) => {
        store.whole.value = store.whole.value === tile ? null : tile;
        if (store.whole.value !== null) event.currentTarget.closest(".details")?.scrollTo(0, 0);
      }}
    >
      <Alone {...props} />
    </button>
  );
}

function cutOf({ graph }: Store, tile: number | null): { box: Cut["box"]; whole: Whole } | null {
  const { cuts = [], wholes = [] } = graph.document.tiles;
  const cut = cuts.find((each) => each.tile === tile);
  const whole = cut && wholes[cut.whole];
  return cut && whole?.src.startsWith("data:image/") ? { box: cut.box, whole } : null;
}

const WIDE = 272; // px: the width of the panel's content beside a scroll bar

/** The whole image that a chosen tile was cut out of, with the cut part framed; hatched beyond the image. */
export function WholeImage({ store }: { store: Store }) {
  const cut = cutOf(store, store.whole.value);
  if (!cut) return null;
  const [top, left, tall, wide] = cut.box;
  const [height, width] = cut.whole.size;
  const [x, y] = [Math.min(0, left), Math.min(0, top)];
  const [across, down] = [Math.max(width, left + wide) - x, Math.max(height, top + tall) - y];
  const scale = WIDE / Math.max(across, down);
  const frame = { x: left, y: top, width: wide, height: tall, fill: "none", "vector-effect": "non-scaling-stroke" };
  const name = plain(cut.whole.name);
  return (
    <section part="whole">
      <h2 title={name}>{brief([], cut.whole.name).join(", ")}</h2>
      <svg
        width={across * scale}
        height={down * scale}
        viewBox={`${x} ${y} ${across} ${down}`}
        role="img"
        aria-label={`${name}, with a frame around ${wide} by ${tall} pixels`}
      >
        <pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform={`scale(${1 / scale})`}>
          <path class="hatch" d="M0 6L6 0" />
        </pattern>
        <rect x={x} y={y} width={across} height={down} fill="url(#hatch)" />
        <image href={cut.whole.src} width={width} height={height} preserveAspectRatio="none" />
        <rect {...frame} stroke="#fff" stroke-width={4} />
        <rect {...frame} stroke="#14140f" stroke-width={1.5} />
      </svg>
      <button
        type="button"
        onClick={() => {
          store.whole.value = null;
        }}
      >
        close
      </button>
    </section>
  );
}

function Alone({ store, tile, size, label }: PictureProps) {
  return (
    <svg width={size} height={size} role="img" aria-label={tile < 0 ? `${label}: no picture` : label}>
      {tile < 0 ? (
        <text x={size / 2} y={size / 2 + 4} text-anchor="middle" font-size={Math.min(11, size / 5)}>
          no picture
        </text>
      ) : (
        <Tile store={store} tile={tile} x={0} y={0} size={size} />
      )}
    </svg>
  );
}

/** A map over positions, its pixels as squares. */
export function MapPicture({ map, size, label }: { map: PositionMap; size: number; label: string }) {
  const scale = size / Math.max(map.height, map.width, 1);
  return <img class="map" src={map.url} alt={label} width={map.width * scale} height={map.height * scale} />;
}

/** A kernel's weights as squares, with their numbers where there is room: right way up, zero neutral; times the sign
 *  `turn`. */
export function Kernel({
  graph,
  edge,
  cell,
  numbers,
  turn = 1,
}: {
  graph: Graph;
  edge: number;
  cell: number;
  numbers: boolean;
  turn?: number;
}) {
  const given = kernel(graph, edge);
  if (!given) return null;
  const { height, width, weights } = given;
  const top = weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0) || 1;
  const tall = numbers ? cell * 0.72 : cell;
  const texts = numbers ? Array.from(weights, significant) : [];
  const font = Math.min(10.5, cell / 3.9, (cell * 1.5) / Math.max(1, ...texts.map((text) => text.length)));
  return (
    <svg
      class="kernel"
      width={width * cell}
      height={height * tall}
      role="img"
      aria-label={numbers ? `weights ${texts.join(" ")}` : "weights"}
    >
      {[...weights].map((weight, i) => {
        const [x, y] = [(i % width) * cell, Math.floor(i / width) * tall];
        const share = Math.abs(weight) / top;
        return [
          <rect x={x} y={y} width={cell} height={tall} fill={heat((turn * weight) / top)} />,
          numbers && (
            <text
              x={x + cell / 2}
              y={y + tall / 2 + 3.5}
              text-anchor="middle"
              font-size={font}
              style={{ fill: share > 0.55 ? "#fff" : "#222" }}
            >
              {texts[i]}
            </text>
          ),
        ];
      })}
    </svg>
  );
}

const EDGE = 6; // px between a panel and the window's edge

/** A button that opens a panel below it. Escape, a click elsewhere or a loss of focus closes it. */
export class Pop extends Component<
  {
    label: ComponentChildren;
    name: string;
    aria?: string;
    right?: boolean;
    up?: boolean; // it opens above its button
    class?: string;
    children: (close: () => void) => ComponentChildren;
  },
  { open: boolean }
> {
  override state = { open: false };
  #root = createRef<HTMLDivElement>();
  #button = createRef<HTMLButtonElement>();
  #panel = createRef<HTMLDivElement>();

  #close = () => {
    this.setState({ open: false });
    this.#button.current?.focus();
  };

  override render() {
    const { label, name, right, up, children } = this.props;
    const { open } = this.state;
    return (
      <div
        class="pop"
        ref={this.#root}
        onKeyDown={(event) => {
          if (event.key !== "Escape" || !open) return;
          event.stopPropagation();
          this.#close();
        }}
        onFocusOut={(event) => {
          if (open && event.relatedTarget && !this.#root.current?.contains(event.relatedTarget as Node))
            this.setState({ open: false });
        }}
      >
        <button
          ref={this.#button}
          type="button"
          part={name}
          aria-label={this.props.aria}
          aria-expanded={open}
          onClick={() => this.setState({ open: !open })}
        >
          {label}
        </button>
        {open && (
          <div
            ref={this.#panel}
            class={`panel ${right ? "right" : ""} ${up ? "up" : ""} ${this.props.class ?? ""}`}
            part={`${name}-panel`}
            tabIndex={-1}
          >
            {children(this.#close)}
          </div>
        )}
      </div>
    );
  }

  /** A panel that would end beyond the window is shifted into it. */
  override componentDidUpdate() {
    const panel = this.#panel.current;
    if (!panel) return;
    panel.style.translate = "";
    const { left, right } = panel.getBoundingClientRect();
    const shift = Math.max(EDGE - left, Math.min(0, document.documentElement.clientWidth - EDGE - right));
    if (shift) panel.style.translate = `${shift}px`;
  }

  #outside = (event: Event) => {
    if (this.state.open && !event.composedPath().includes(this.#root.current!)) this.setState({ open: false });
  };
  override componentDidMount() {
    addEventListener("pointerdown", this.#outside);
  }
  override componentWillUnmount() {
    removeEventListener("pointerdown", this.#outside);
  }
}
