"""A round, as two pure machines: the coordinator's half (`machine`) and the device's half (`member`).

Facts go in (`events`), orders come out (`effects`); what the round is about stands in its `terms`. Read them
in this order: terms, events, effects, machine, member.
"""
