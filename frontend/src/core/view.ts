/** A whole view from what is given of one. */

import { DEFAULT_VIEW, type Document, type View } from "./types.js";

export class ViewError extends Error {}

/** The view, defaults where nothing is said. Raises ViewError for what the document does not have. */
export function viewOf(document: Document, given: Partial<View>): View {
  const view = { ...DEFAULT_VIEW, ...given };
  const nodes = document.nodes.kind.shape[0]!;
  const whole = (value: unknown, least: number, end: number) =>
    Number.isInteger(value) && (value as number) >= least && (value as number) < end;
  const expect = (holds: boolean, name: string, expected: string) => {
    if (!holds)
      throw new ViewError(`The view's ${name} is ${JSON.stringify(view[name as keyof View])}; expected ${expected}.`);
  };
  const variants = `one of ${document.variants.length} variants`;
  expect(whole(view.variant, 0, document.variants.length), "variant", variants);
  expect(view.compare === null || whole(view.compare, 0, document.variants.length), "compare", `null or ${variants}`);
  expect(view.kernels === null || whole(view.kernels, 0, Infinity), "kernels", "null or a number of kernels");
  expect(whole(view.nodesPerColumn, 1, Infinity), "nodesPerColumn", "at least 1");
  expect(whole(view.kernelsPerNode, 1, Infinity), "kernelsPerNode", "at least 1");
  for (const name of ["root", "isolate"] as const)
    expect(view[name] === null || whole(view[name], 0, nodes), name, `null or one of ${nodes} nodes`);
  expect(view.share > 0 && view.share <= 1, "share", "a share above 0, up to 1");
  expect(
    view.pins.every((pin) => whole(pin, 0, nodes)),
    "pins",
    `numbers of ${nodes} nodes`,
  );
  expect(
    view.groups.every((group) => group.nodes.every((node) => whole(node, 0, nodes))),
    "groups",
    `numbers of ${nodes} nodes`,
  );
  return view;
}

/** The view with a width's budget in place of the usual one; another budget was chosen, and stays. */
export function onPaper(
  view: View,
  budget: { readonly nodesPerColumn?: number; readonly kernelsPerNode?: number },
): View {
  const { nodesPerColumn, kernelsPerNode } = DEFAULT_VIEW;
  return {
    ...view,
    nodesPerColumn:
      view.nodesPerColumn === nodesPerColumn ? (budget.nodesPerColumn ?? nodesPerColumn) : view.nodesPerColumn,
    kernelsPerNode:
      view.kernelsPerNode === kernelsPerNode ? (budget.kernelsPerNode ?? kernelsPerNode) : view.kernelsPerNode,
  };
}
