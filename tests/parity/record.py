"""Write a folder of goldens from an official checkout: `python tests/parity/record.py OFFICIAL_CHECKOUT OUT`.

    python tests/parity/record.py ../Deformable-DETR /tmp/goldens/deformable --set with_box_refine=true two_stage=true
    python tests/parity/record.py ../DINO /tmp/goldens/dino --config-file config/DINO/DINO_4scale.py
    pytest tests/parity --goldens /tmp/goldens

OFFICIAL_CHECKOUT is a clone of DETR, Conditional DETR, Deformable DETR, DAB-DETR, DN-DETR or DINO; its code is run as
it is, on CPU, with the stand-ins that `checkout.py` lists. README.md tells what is compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # a script sees its own folder; `parity` lies one above
    from parity.recording import main

    main()
