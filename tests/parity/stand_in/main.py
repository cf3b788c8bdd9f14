"""A stand-in for an official checkout: DETR's layout and its numbers, in few lines, to prove the recorder with."""

import argparse

import datasets  # noqa: F401  as official code does, whether or not it is needed
from models import build_model  # noqa: F401


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--coco_path", required=True)
    for name, value in (("lr", 1e-4), ("dropout", 0.1), ("eos_coef", 0.1)):
        parser.add_argument(f"--{name}", default=value, type=float)
    for name, number in (
        ("hidden_dim", 256),
        ("nheads", 8),
        ("enc_layers", 6),
        ("dec_layers", 6),
        ("dim_feedforward", 2048),
        ("num_queries", 100),
        ("set_cost_class", 1),
        ("set_cost_bbox", 5),
        ("set_cost_giou", 2),
        ("bbox_loss_coef", 5),
        ("giou_loss_coef", 2),
    ):
        parser.add_argument(f"--{name}", default=number, type=int)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dilation", action="store_true")
    return parser
