"""What a training run will need, before it starts: memory, arithmetic and time of each head beside a backbone."""

from attfc_cuda.plan.heads import HEADS, Head, head_needs
from attfc_cuda.plan.networks import NetworkNeeds, network_needs
from attfc_cuda.plan.report import Plan, make_plan

__all__ = ["HEADS", "Head", "NetworkNeeds", "Plan", "head_needs", "make_plan", "network_needs"]
