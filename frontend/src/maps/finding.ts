/** The lines that find a circuit for chosen images where no explorer does. */

export interface Finding {
  command?: string; // in a shell, where the images are files of a folder
  program?: string; // else in Python, where CHOSEN becomes a list
}

/** What is run to find a circuit for images of these names. */
export function finding({ command, program = "" }: Finding, names: readonly string[]): string {
  if (!command) return program.replace("CHOSEN", () => JSON.stringify(names, null, 4));
  const stem = `chosen-${digest([command, ...names.toSorted()].join("\n"))}`; // files of its own for each choice
  const cell = (name: string) => (/[",\r\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name);
  const rows = names.map((name) => `${cell(name)},0,0,1e9,1e9`); // boxes around whole photographs of any size
  const table = ["name,photo_top,photo_left,photo_height,photo_width", ...rows].map(quoted);
  return (
    `printf '%s\\n' ${table.join(" \\\n  ")} > ${stem}.csv &&\n` +
    `${command} --boxes ${stem}.csv --out ${stem}.safetensors`
  );
}

function quoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

/** A short hash of a text (FNV-1a). */
function digest(text: string): string {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0");
}
