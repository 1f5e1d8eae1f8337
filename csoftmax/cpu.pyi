from typing import Any, Final

__pyx_capi__: Final[dict[str, Any]]
__test__: dict[str, str]
