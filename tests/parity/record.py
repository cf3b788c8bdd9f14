"""Write a folder of goldens from an official checkout: `python tests/parity/record.py OFFICIAL_CHECKOUT OUT`.

    python tests/parity/record.py ../Deformable-DETR goldens/deformable --set with_box_refine=true two_stage=true
    python tests/parity/record.py ../DINO goldens/dino --config-file config/DINO/DINO_4scale.py
    pytest tests/parity --goldens goldens

OFFICIAL_CHECKOUT is a clone of DETR, Conditional DETR, Deformable DETR, DAB-DETR, DN-DETR or DINO; its code is run as
it is, on CPU, with the stand-ins that `checkout.py` lists (DINO's configuration files need `pip install addict`).
README.md tells what is compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script sees its own folder; `parity` lies one above, the packages two.
    tests = Path(__file__).resolve().parents[1]
    sys.path[:1] = [str(tests), str(tests.parent)]
    from parity.recording import main

    main()
