/** Short names of photographs. */

import { plain } from "../core/text.js";

/** A photograph's file, with as many of its folders as tell it from the others, and then what is said of it, such as
 *  its crop and whether it was held out. */
export function brief(names: readonly string[], name: string): string[] {
  const [path, ...said] = name.split(", ");
  const folders = path!.split("/");
  let end = folders.pop();
  while (folders.length && names.some((other) => !other.startsWith(path!) && `/${other},`.includes(`/${end},`)))
    end = `${folders.pop()}/${end}`;
  return [end!, ...said].map(plain);
}
