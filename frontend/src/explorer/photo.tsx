/** A photograph, as the model sees it. */

import { plain } from "../core/text.js";
import { api } from "./api.js";
import { useLoaded } from "./live.js";
import { Notes } from "./note.js";
import type { Place } from "./route.js";
import { photoName } from "./text.js";
import { Picture, Problem, Seen } from "./ui.js";

export function PhotoPage({ place: { id } }: { place: Extract<Place, { page: "photo" }> }) {
  const { value: photo, error } = useLoaded(id, 0, (signal) => api.photo(id, signal));
  const name = plain(photo?.name ?? "");
  return (
    <>
      <main id="main">
        <h1 tabIndex={-1}>{photoName(name) || "Photograph"}</h1>
        {photoName(name) !== name && <p class="soft">{name}</p>}
        <Problem text={error} />
        {photo && (
          <div class="whole">
            <figure>
              <Picture src={api.thumb(id, 960)} alt={name} />
              <figcaption>The photograph.</figcaption>
            </figure>
            <figure>
              <Seen photo={id} box={null} alt={`${name}, as the model sees it`} />
              <figcaption>What the model sees of it.</figcaption>
            </figure>
          </div>
        )}
      </main>
      <aside class="side" aria-label="the photograph">
        {photo && (
          <section>
            <h2>Label and note</h2>
            <Notes of={{ photo: id }} what={name} />
          </section>
        )}
      </aside>
    </>
  );
}
