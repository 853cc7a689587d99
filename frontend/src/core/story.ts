/** The story that a drawing tells: its main paths, which are lit while the rest is dimmed. */

import { of, type Parts } from "./select.js";

export interface Story {
  units: Uint8Array;
  bundles: Uint8Array;
}

/** How many units the main paths may have, together and in each column. */
export interface Room {
  units: number;
  inColumn: number;
}

/** The room in so many columns: in one of 4 or more, what a window of 720 px has as large pictures, beside the rest. */
export function roomIn(columns: number): Room {
  const units = Math.max(2 * columns, Math.min(24, Math.max(15, 3 * columns)));
  return { units, inColumn: columns > 3 ? 6 : units };
}

/** The strongest complete paths image -> root of the drawn bundles, as many as there is room for, but at least one.
 *
 * A path is as strong as the share of the root's flow that it carries, a bundle as the strongest path through it, and
 * bundles are taken from the strongest on, each with that path: so the bundles on paths of at least some strength are
 * lit. More room never lights less. The strongest paths through the units in `through` are lit whatever their strength.
 */
export function mainPaths(parts: Parts, drawn: Uint8Array, room: Room, through: Iterable<number> = []): Story {
  const units = new Uint8Array(parts.members.length);
  const bundles = new Uint8Array(parts.edges.length);
  const up = fromImage(parts, drawn);
  const down = toRoot(parts, drawn);
  let count = 0;
  const inColumn = new Map<number, number>();
  const light = (path: { units: number[]; bundles: number[] }) => {
    for (const unit of path.units) {
      if (units[unit]) continue;
      [units[unit], count] = [1, count + 1];
      inColumn.set(parts.column[unit]!, (inColumn.get(parts.column[unit]!) ?? 0) + 1);
    }
    for (const bundle of path.bundles) bundles[bundle] = 1;
  };
  /** The strongest path that ends with `above` and goes on from `below`. */
  const path = (above: number, below: number, between: number[]) => {
    const found = { units: [above, below], bundles: [...between] };
    for (let unit = above; up.by[unit]! >= 0; found.units.push(unit)) {
      found.bundles.push(up.by[unit]!);
      unit = parts.source[up.by[unit]!]!;
    }
    for (let unit = below; down.by[unit]! >= 0; found.units.push(unit)) {
      found.bundles.push(down.by[unit]!);
      unit = parts.target[down.by[unit]!]!;
    }
    return found;
  };
  if (parts.root < 0 || up.strength[parts.root]! < 0) return { units, bundles };
  for (const unit of [...through].sort((a, b) => a - b))
    if (up.strength[unit]! >= 0 && down.strength[unit]! >= 0) light(path(unit, unit, []));
  const [from, to] = [parts.source, parts.target];
  const strength = Float64Array.from(parts.share, (share, b) =>
    drawn[b] && up.strength[from[b]!]! >= 0 && down.strength[to[b]!]! >= 0
      ? up.strength[from[b]!]! * share * down.strength[to[b]!]!
      : -1,
  );
  const ranked = [...strength.keys()]
    .filter((bundle) => strength[bundle]! >= 0)
    .sort((a, b) => strength[b]! - strength[a]! || a - b);
  for (const bundle of ranked) {
    const next = path(from[bundle]!, to[bundle]!, [bundle]);
    const added = [...new Set(next.units.filter((unit) => !units[unit]))];
    const columns = added.map((unit) => parts.column[unit]!);
    const full = columns.some(
      (at) => (inColumn.get(at) ?? 0) + columns.filter((column) => column === at).length > room.inColumn,
    );
    if (count && (full || count + added.length > room.units)) break;
    light(next);
  }
  if (!count) light(path(parts.root, parts.root, [])); // the root alone reads the image
  return { units, bundles };
}

/** For each unit the strength of the strongest path that ends with it, and the bundle by which this comes: -1 for the
 *  image itself. A strength of -1: there is none. */
interface Strongest {
  strength: Float64Array;
  by: Int32Array;
}

function fromImage(parts: Parts, drawn: Uint8Array): Strongest {
  const strength = Float64Array.from(parts.image, (share, unit) => (parts.seesImage[unit] ? share : -1));
  const by = new Int32Array(strength.length).fill(-1);
  for (let unit = 0; unit < strength.length; unit++)
    for (const bundle of of(parts.incoming, unit)) {
      const above = strength[parts.source[bundle]!]!;
      if (!drawn[bundle] || above < 0 || above * parts.share[bundle]! <= strength[unit]!) continue;
      strength[unit] = above * parts.share[bundle]!;
      by[unit] = bundle;
    }
  return { strength, by };
}

/** The same downwards: of the strongest path that begins with it and ends with the root. */
function toRoot(parts: Parts, drawn: Uint8Array): Strongest {
  const strength = new Float64Array(parts.members.length).fill(-1);
  const by = new Int32Array(strength.length).fill(-1);
  if (parts.root >= 0) strength[parts.root] = 1;
  for (let unit = parts.root; unit >= 0; unit--)
    for (const bundle of of(parts.incoming, unit)) {
      const source = parts.source[bundle]!;
      if (!drawn[bundle] || strength[unit]! < 0 || strength[unit]! * parts.share[bundle]! <= strength[source]!)
        continue;
      strength[source] = strength[unit]! * parts.share[bundle]!;
      by[source] = bundle;
    }
  return { strength, by };
}
