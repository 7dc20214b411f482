"""Size and speed of quantised models beside their originals, on random weights.

    python benchmarks/quant.py [--models S/32 S/16] [--schemes int8-static int8-weight] [--batch 8]

Agreement and accuracy say nothing of random weights; for a trained model see
tests/test_vit_quant.py. Both are compiled and timed in turns: CPU time of one thread, or GPU time.
"""

import argparse
import logging
import platform
import sys

import torch

from vit.comparison import compare
from vit.config import ViTConfig
from vit.model import ViT
from vit.quant import SCHEMES, quantise, refusal

log = logging.getLogger("quant")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["S/32", "S/16"], help="sizes")
    parser.add_argument("--schemes", nargs="+", default=list(SCHEMES), help=", ".join(SCHEMES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=8, help="images per call")
    parser.add_argument("--rounds", type=int, default=5, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def main() -> None:
    """Compare what the command line names; tell why a scheme is left out."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    log.info("torch %s, %s, %d thread(s)", torch.__version__, device, options.threads)
    for scheme in options.schemes:
        reason = refusal(scheme, options.device)
        if reason:
            log.info("left out: %s", reason)
            continue
        for name in options.models:
            torch.manual_seed(0)
            config = ViTConfig.named(name, num_classes=1000)
            model = ViT(config).to(options.device)
            torch.nn.init.normal_(model.head.weight, std=0.02)
            size = config.image_size
            images = torch.randn(2 * options.batch, 3, size, size, device=options.device)
            labels = torch.zeros(len(images), dtype=torch.int64)
            quantised = quantise(model, scheme, calibration=images.split(options.batch))
            report = compare(
                model, quantised, images, labels, batch=options.batch, rounds=options.rounds
            )
            log.info("%s, batch %d\n%s", name, options.batch, report)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
