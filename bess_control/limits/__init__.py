"""Charge limiter: from what is measured to the power that is allowed, one named limit after the other. Pure."""

from bess_control.limits.chain import STAGES, Chain, Inputs, Limited
from bess_control.limits.params import LimiterParams

__all__ = ['STAGES', 'Chain', 'Inputs', 'Limited', 'LimiterParams']
