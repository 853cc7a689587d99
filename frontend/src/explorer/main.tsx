/** The explorer's entry point. */

import { render } from "preact";
import { navigate } from "./navigation.js";
import { Shell } from "./shell.js";
import { STYLES } from "./styles.js";
import { follow } from "./theme.js";

const sheet = new CSSStyleSheet(); // which a content security policy lets pass
sheet.replaceSync(STYLES);
document.adoptedStyleSheets = [sheet];
navigate();
follow();
render(<Shell />, document.getElementById("explorer")!);
