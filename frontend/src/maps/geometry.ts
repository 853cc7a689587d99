/** Where points are on a map, and which of them are meant. */

export type Point = readonly [x: number, y: number];

const MARGIN = 24; // px, for what is drawn around a point

/** The largest distance of a point from the axes, which is drawn at the map's edge. */
export function extent(points: Iterable<Point>): number {
  let most = 0;
  for (const [x, y] of points) most = Math.max(most, Math.abs(x), Math.abs(y));
  return most || 1;
}

/** The place in px of a point on a map of this size, whose y grows downward. */
export function placed([x, y]: Point, most: number, width: number, height: number): Point {
  const size = Math.max(0, Math.min(width, height) / 2 - MARGIN);
  return [width / 2 + (x / most) * size, height / 2 - (y / most) * size];
}

/** The point nearest to a place, closer than `reach`; -1 if there is none. */
export function nearest(points: readonly Point[], [x, y]: Point, reach: number): number {
  let [found, distance] = [-1, reach];
  points.forEach(([left, top], n) => {
    const far = Math.hypot(left - x, top - y);
    if (far < distance) [found, distance] = [n, far];
  });
  return found;
}

/** The points inside a polygon: those from which a ray crosses its edges an odd number of times. */
export function inside(points: readonly Point[], polygon: readonly Point[]): number[] {
  return points.flatMap(([x, y], n) => {
    let odd = false;
    polygon.forEach(([ax, ay], k) => {
      const [bx, by] = polygon[(k + 1) % polygon.length]!;
      if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) odd = !odd;
    });
    return odd ? [n] : [];
  });
}
