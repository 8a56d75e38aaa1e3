"""A strategy of your own: the server goes only part of the way towards the devices' mean.

    cd examples
    koinon-coordinator serve --insecure --plugin half_step &
    export KOINON_INSECURE=1
    koinon client quickstart.py --run mine --name a --plugin half_step &
    koinon client quickstart.py --run mine --name b --plugin half_step &
    koinon client quickstart.py --run mine --name c --plugin half_step &
    python quickstart.py model
    koinon run create mine --model init.safetensors --strategy 'half_step.HalfStep(share=0.5)' --plugin half_step

Both ends load the module; only its name and fields travel, never its code.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import koinon


@koinon.register
@dataclass(frozen=True)
class HalfStep(koinon.Base):
    """w += share * mean. The fields are the recipe; `server` is all there is to write."""

    weight: ClassVar = "examples"
    share: float = 0.5

    def server(self, s, agg, rng):
        return replace(agg, mean=agg.mean * self.share), s
