/** A note that is being written, while somebody else may write it too. */

import type { Note, Tagged } from "./api.js";

/** What is known of a note: as it was read, as it is being written, and what somebody else wrote meanwhile. */
export interface Draft {
  read: Tagged;
  mine: Note;
  theirs: Tagged | null;
}

export function isChanged({ read, mine }: Draft): boolean {
  return mine.label !== read.note.label || mine.star !== read.note.star || mine.text !== read.note.text;
}

/** A draft when the note was read again: what the reader has not touched is as it is now. */
export function readAgain(draft: Draft | null, now: Tagged): Draft {
  if (!draft || !isChanged(draft)) return { read: now, mine: now.note, theirs: null };
  return now.tag === draft.read.tag ? draft : { ...draft, theirs: now };
}
