/** Maps: which points are meant, and what is run to find a circuit for some. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { INKS, rampColor } from "../src/maps/color.js";
import { finding } from "../src/maps/finding.js";
import { extent, inside, nearest, type Point, placed } from "../src/maps/geometry.js";
import { walked } from "../src/maps/plot.js";

test("the farthest point is at the edge of the shorter side, with y upward", () => {
  assert.equal(
    extent([
      [1, -4],
      [2, 3],
    ]),
    4,
  );
  assert.equal(extent([]), 1);
  assert.deepEqual(placed([0, 0], 4, 300, 200), [150, 100]);
  assert.deepEqual(placed([4, 4], 4, 300, 200), [226, 24]);
});

test("the nearest point is the one that is meant, if it is close", () => {
  const points: Point[] = [
    [0, 0],
    [10, 0],
    [11, 0],
  ];
  assert.equal(nearest(points, [9, 0], 5), 1);
  assert.equal(nearest(points, [4, 0], 4), -1);
});

test("a lasso holds what a winding of its corners goes around, whatever its direction", () => {
  const points: Point[] = Array.from({ length: 400 }, (_, n) => [(n % 20) + 0.53, Math.floor(n / 20) + 0.47]);
  const lasso: Point[] = [
    [2, 2],
    [17, 4],
    [9, 9],
    [16, 18],
    [3, 15],
  ];
  const angle = ([x, y]: Point) => {
    const turns = lasso.map(([ax, ay], k) => {
      const [bx, by] = lasso[(k + 1) % lasso.length]!;
      const turn = Math.atan2(by - y, bx - x) - Math.atan2(ay - y, ax - x);
      return turn - 2 * Math.PI * Math.round(turn / (2 * Math.PI));
    });
    return Math.abs(turns.reduce((sum, turn) => sum + turn, 0));
  };
  const expected = points.flatMap((point, n) => (angle(point) > Math.PI ? [n] : []));
  assert.ok(expected.length > 50);
  assert.deepEqual(inside(points, lasso), expected);
  assert.deepEqual(inside(points, lasso.toReversed()), expected);
});

test("arrow keys walk around a list, and other keys do not", () => {
  assert.deepEqual([walked("ArrowRight", -1, 3), walked("ArrowLeft", -1, 3)], [0, 2]);
  assert.deepEqual([walked("ArrowDown", 2, 3), walked("ArrowUp", 0, 3)], [0, 2]);
  assert.deepEqual([walked("a", 0, 3), walked("ArrowUp", 0, 0)], [null, null]);
});

test("colors of values reach from one end of the ramp to the other", () => {
  const rgb = (text: string) => `rgb(${[1, 3, 5].map((n) => Number.parseInt(text.slice(n, n + 2), 16)).join(" ")})`;
  for (const theme of ["light", "dark"] as const)
    assert.deepEqual(
      [-1, 0.5, 2].map((value) => rampColor(theme, value)),
      INKS[theme].ramp.map(rgb),
    );
});

test("other images are found in other files, the same ones in any order in the same", () => {
  const files = (names: string[]) => /chosen-[0-9a-f]{8}/.exec(finding({ command: "true" }, names))![0];
  assert.equal(files(["a", "b"]), files(["b", "a"]));
  assert.notEqual(files(["a", "b"]), files(["a", "c"]));
  assert.equal(finding({ program: "some = CHOSEN\n$&" }, ["a"]), 'some = [\n    "a"\n]\n$&');
});
