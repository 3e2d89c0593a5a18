"""Making caches of teacher targets: `build` runs the teacher, `verify` holds a cache against it; `cut` takes less of a
cache, and `adopt` what another system has kept.
"""

from jaxdistill.caching.adopt import adopt
from jaxdistill.caching.build import build, progress
from jaxdistill.caching.cut import cut
from jaxdistill.caching.show import averages, show
from jaxdistill.caching.verify import verify

__all__ = ["adopt", "averages", "build", "cut", "progress", "show", "verify"]
