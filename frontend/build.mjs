/** Builds the bundles that the Python package ships, or, with `tests`, the test files for node's runner. */

import { existsSync, readdirSync } from "node:fs";
import { build } from "esbuild";

const common = { bundle: true, target: "es2022", charset: "utf8", legalComments: "none", logLevel: "warning" };
const preact = { jsx: "automatic", jsxImportSource: "preact" };
const shipped = { ...common, minify: true, outdir: "../src/convcircuits/drawing/static" };

if (process.argv[2] === "tests") {
  const tests = readdirSync("test").filter((name) => name.endsWith(".test.ts"));
  await build({
    ...common,
    entryPoints: tests.map((name) => `test/${name}`),
    outdir: "build",
    format: "esm",
    platform: "node",
    packages: "external",
  });
} else {
  await build({
    ...shipped,
    entryPoints: { figure: "src/core/figure.ts" },
    format: "iife",
    globalName: "convcircuits",
  });
  const app = "src/app/main.ts";
  if (existsSync(app))
    await build({
      ...shipped,
      entryPoints: { diagram: app },
      format: "esm",
      ...preact,
    });
  await build({
    ...shipped,
    outdir: "../src/convcircuits/explorer/static",
    entryPoints: { explorer: "src/explorer/main.tsx" },
    format: "esm",
    ...preact,
  });
}
