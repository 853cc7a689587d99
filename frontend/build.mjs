/** Builds the bundles that the Python package ships, or, with `tests`, the test files for node's runner. */

import { readdirSync, writeFileSync } from "node:fs";
import { build, transform } from "esbuild";
import { minify } from "terser";

const common = {
  bundle: true,
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
  define: { "window.__PREACT_SIGNALS_DEVTOOLS__": "false" },
};
const preact = { format: "esm", jsx: "automatic", jsxImportSource: "preact" };

/** Styles are texts, which a bundle has as they are: here they are made as short as a file of CSS would be. */
const styles = {
  name: "styles",
  setup({ onLoad }) {
    onLoad({ filter: /\/styles\.ts$/ }, async ({ path }) => {
      const { outputFiles } = await build({ entryPoints: [path], bundle: true, format: "esm", write: false });
      const texts = await import(`data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`);
      const short = Object.entries(texts).map(async ([name, text]) => {
        const { code } = await transform(text, { loader: "css", minify: true, charset: "utf8" });
        return `export const ${name} = ${JSON.stringify(code.trim())};`;
      });
      return { contents: (await Promise.all(short)).join("\n") };
    });
  },
};

// What makes code shorter, but not what makes it less alike, of which gzip would need more.
const compress = {
  passes: 3,
  sequences: false,
  inline: 0,
  reduce_funcs: false,
  join_vars: false,
  lhs_constants: false,
};

/** Writes a bundle. Terser's names are those that gzip can shorten most. */
async function ship(to, options) {
  const { outputFiles } = await build({ ...common, ...options, minifySyntax: true, write: false, plugins: [styles] });
  const module = options.format === "esm";
  const { code } = await minify(outputFiles[0].text, { module, ecma: 2020, compress, mangle: true });
  writeFileSync(`../src/convcircuits/${to}`, `${code}\n`);
}

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
  await ship("drawing/static/figure.js", {
    entryPoints: ["src/core/figure.ts"],
    format: "iife",
    globalName: "convcircuits",
  });
  await ship("drawing/static/diagram.js", { entryPoints: ["src/app/main.ts"], ...preact });
  await ship("drawing/static/map.js", { entryPoints: ["src/maps/main.tsx"], ...preact });
  await ship("explorer/static/explorer.js", { entryPoints: ["src/explorer/main.tsx"], ...preact });
}
