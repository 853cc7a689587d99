/** Copying, in the explorer and in pages that are files. */

import { useEffect, useState } from "preact/hooks";

/** A button that copies a text, as it is then. */
export function Copied({ text, label, disabled }: { text: () => string; label: string; disabled?: boolean }) {
  const [said, say] = useState("");
  useEffect(() => {
    if (!said) return;
    const timer = setTimeout(() => say(""), 2000);
    return () => clearTimeout(timer);
  }, [said]);
  return (
    <button
      type="button"
      disabled={disabled}
      onClick={() => copy(text()).then((done) => say(done ? "copied" : "the browser did not allow it"))}
    >
      <span role="status">{said || label}</span>
    </button>
  );
}

/** Copies a text. Returns whether the browser did. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A page that is a file may not write to the clipboard by itself.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
