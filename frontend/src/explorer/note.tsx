/** A label, a star and a note, which nobody overwrites unseen. */

import { useEffect, useState } from "preact/hooks";
import { plain } from "../core/text.js";
import { ApiError, api, CHANGED, EMPTY, type Note, type NoteOf } from "./api.js";
import { type Draft, isChanged, readAgain } from "./draft.js";
import { canWrite, message, version } from "./live.js";
import { Problem } from "./ui.js";

export function Notes({ of, what }: { of: NoteOf; what: string }) {
  const [draft, put] = useState<Draft | null>(null);
  const [error, say] = useState("");
  const key = JSON.stringify(of);
  const state = version.notes.value;

  useEffect(() => put(null), [key]);
  useEffect(() => {
    const control = new AbortController();
    api.note(of, control.signal).then(
      (now) => {
        if (control.signal.aborted) return;
        say("");
        put((draft) => readAgain(draft, now));
      },
      (problem: Error) => {
        if (!control.signal.aborted) say(problem.message);
      },
    );
    return () => control.abort();
  }, [key, state]);

  const save = async (mine: Note, tag: string) => {
    try {
      const read = await api.writeNote(of, mine, tag);
      put({ read, mine: read.note, theirs: null });
      say("");
      message.value = "saved";
    } catch (problem) {
      say((problem as Error).message);
      if (!(problem instanceof ApiError) || problem.status !== CHANGED) return;
      const theirs = await api.note(of).catch(() => null);
      if (theirs) {
        say("");
        put((draft) => draft && { ...draft, mine, theirs });
      }
    }
  };

  const { mine, read, theirs } = draft ?? { mine: EMPTY, read: null, theirs: null };
  const locked = !canWrite.value || !draft;
  const change = (part: Partial<Note>) => draft && put({ ...draft, mine: { ...mine, ...part } });
  return (
    <form
      class="note"
      aria-label={`label and note of ${what}`}
      onSubmit={(event) => {
        event.preventDefault();
        if (read && !theirs) save(mine, read.tag);
      }}
    >
      <div class="line">
        <button
          type="button"
          class="star"
          part="star"
          aria-pressed={mine.star}
          aria-label={mine.star ? `take the star off ${what}` : `star ${what}`}
          disabled={locked || theirs !== null}
          onClick={() => {
            const next = { ...mine, star: !mine.star };
            change({ star: next.star });
            if (read) save(next, read.tag);
          }}
        >
          {mine.star ? "★" : "☆"}
        </button>
        <input
          type="text"
          part="label"
          aria-label="label"
          placeholder={locked ? "no label" : "add a label"}
          maxLength={200}
          value={mine.label}
          disabled={locked}
          onInput={(event) => change({ label: event.currentTarget.value })}
        />
      </div>
      <textarea
        part="text"
        aria-label="note"
        placeholder={locked ? "no note" : "add a note"}
        rows={2}
        maxLength={20_000}
        value={mine.text}
        disabled={locked}
        onInput={(event) => change({ text: event.currentTarget.value })}
      />
      {draft && isChanged(draft) && !theirs && (
        <div class="line">
          <button type="submit" class="main-button small">
            Save
          </button>
          <button type="button" onClick={() => put({ ...draft, mine: draft.read.note })}>
            undo
          </button>
        </div>
      )}
      {theirs && (
        <Both
          mine={mine}
          theirs={theirs.note}
          keep={() => save(mine, theirs.tag)}
          take={() => put({ read: theirs, mine: theirs.note, theirs: null })}
        />
      )}
      <Problem text={error} />
    </form>
  );
}

/** Two notes on one thing, of which the reader chooses.
 *
 *  @param addressed whether one is the address's, and the other what is saved; otherwise both were written just now */
export function Both(props: {
  mine: Note;
  theirs: Note;
  keep: () => void;
  take: () => void;
  on?: string;
  addressed?: boolean;
}) {
  const { mine, theirs, keep, take, on, addressed } = props;
  return (
    <div class="both" role="alert">
      <p>
        <b>
          {addressed ? "Saved" : "Another tab wrote meanwhile"}
          {on && ` on ${plain(on)}`}:
        </b>{" "}
        {told(theirs)}
      </p>
      <p>
        <b>{addressed ? "In this page's address, not saved:" : "Yours, not saved:"}</b> {told(mine)}
      </p>
      <div class="line">
        <button type="button" onClick={keep}>
          {addressed ? "save the address's" : "keep mine"}
        </button>
        <button type="button" onClick={take}>
          {addressed ? "take what is saved" : "take theirs"}
        </button>
      </div>
    </div>
  );
}

function told({ label, star, text }: Note): string {
  const parts = [star ? "★" : "", label && `“${plain(label)}”`, plain(text)].filter(Boolean);
  return parts.join(" ") || "nothing";
}
