/** The entry point of a page with a map that is a file: it finds the data, and shows the map with all about it. */

import type { ComponentChildren } from "preact";
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Copied } from "../app/copied.js";
import { onSystemTheme, type Theme } from "../app/source.js";
import { plain } from "../core/text.js";
import { AtlasCard, type AtlasData, AtlasMap, AtlasTables, type UnitOfAtlas, useAtlas } from "./atlas.js";
import { type Finding, finding } from "./finding.js";
import { FILE_STYLES } from "./styles.js";
import { Chosen, FEWEST, Pointed, strongest, type TrajectoryData, TrajectoryMap, useTrajectory } from "./trajectory.js";
import { WHOLE_ATLAS, WHOLE_TRAJECTORY } from "./views.js";

interface Headed {
  heading: string;
  words: string;
}

type TrajectoryFile = Headed & TrajectoryData & { finding: Finding };
type AtlasFile = Headed & AtlasData<UnitOfAtlas & { file: string }>;

/** What is looked at, and its state that is a part of another. */
function useView<View>(whole: View): [View, (part: Partial<View>) => void] {
  const [view, put] = useState(whole);
  return [view, (part) => put((now) => ({ ...now, ...part }))];
}

function useSystemTheme(): Theme {
  const [theme, put] = useState<Theme>("light");
  useEffect(() => onSystemTheme(put), []);
  return theme;
}

function Page({
  of,
  theme,
  side,
  children,
}: {
  of: Headed;
  theme: Theme;
  side: ComponentChildren;
  children: ComponentChildren;
}) {
  return (
    <div class="app map-file" data-theme={theme}>
      <header>
        <h1 dir="auto">{plain(of.heading)}</h1>
        <p class="soft">{plain(of.words)}</p>
      </header>
      <main>{children}</main>
      <aside class="side" aria-label="what is pointed at or chosen">
        {side}
      </aside>
    </div>
  );
}

function TrajectoryPage({ data }: { data: TrajectoryFile }) {
  const theme = useSystemTheme();
  const [view, change] = useView(WHOLE_TRAJECTORY);
  const of = useTrajectory(data, view, change, theme);
  const thumb = (n: number) => <img src={data.pictures[n]} alt={plain(data.names[n]!)} />;
  const names = strongest(data, of.chosen).map((n) => data.names[n]!);
  const lines = () => finding(data.finding, names);
  const side = (
    <>
      <section aria-live="polite">
        <Pointed of={of} thumb={thumb} />
      </section>
      <section>
        <Chosen of={of} thumb={thumb}>
          {names.length >= FEWEST && (
            <div class="heading">
              <p class="soft">
                A circuit for them, found on 60 % of them and measured on the others, each once and whole.{" "}
                {data.finding.command ? "In a shell" : "In Python"}, in the folder where convcircuits trajectory was
                run:
              </p>
              <Copied text={lines} label="copy lines" />
            </div>
          )}
          {names.length > 0 && (
            <pre tabIndex={0} aria-label="how to find a circuit for the chosen images">
              {lines().split("\n").map(plain).join("\n")}
            </pre>
          )}
        </Chosen>
      </section>
    </>
  );
  return (
    <Page of={data} theme={theme} side={side}>
      <TrajectoryMap of={of} />
    </Page>
  );
}

function AtlasPage({ data }: { data: AtlasFile }) {
  const theme = useSystemTheme();
  const [view, change] = useView(WHOLE_ATLAS);
  const of = useAtlas(data, view, change, theme, (layer) => layer);
  const leads = ({ file }: { file: string }) =>
    file && ( // none where the page was taken from its circuits
      <>
        <p>
          <a href={file.split("/").map(encodeURIComponent).join("/")}>The circuit's file</a>
        </p>
        <pre tabIndex={0} aria-label="how to see it">
          convcircuits diagram {plain(file)} --open
        </pre>
      </>
    );
  const side = (
    <section aria-live="polite">
      <AtlasCard of={of} leads={leads} />
    </section>
  );
  return (
    <Page of={data} theme={theme} side={side}>
      <AtlasMap of={of} />
      <AtlasTables of={of} />
    </Page>
  );
}

const sheet = new CSSStyleSheet();
sheet.replaceSync(FILE_STYLES);
document.adoptedStyleSheets = [sheet];
const page = document.getElementById("page")!;
const data = <T,>(id: string) => JSON.parse(document.getElementById(id)?.textContent ?? "null") as T | null;
const [trajectory, atlas] = [data<TrajectoryFile>("trajectory"), data<AtlasFile>("atlas")];
page.replaceChildren();
render(trajectory ? <TrajectoryPage data={trajectory} /> : <AtlasPage data={atlas!} />, page);
