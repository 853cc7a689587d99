"""Write the OpenAPI schema of the explorer's API, which the package carries and a test compares."""

import json
from pathlib import Path

from convcircuits.explorer import server

if __name__ == "__main__":
    file = Path(server.__file__).parent / "static" / "openapi.json"
    file.write_text(json.dumps(server.openapi(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}")
