"""Write the OpenAPI schema of the explorer's API, which the package carries and a test compares."""

import json
from pathlib import Path

from convcircuits.explorer import routes, schemas

if __name__ == "__main__":
    file = Path(schemas.__file__).parent / "static" / "openapi.json"
    file.write_text(json.dumps(routes.openapi(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}")
