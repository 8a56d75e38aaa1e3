"""What a secure round adds up: a device's update as the lanes of a ring, and the sum of lanes as an update again.

    levels      what a run may ask for: bits, error, whether all coordinates are sent
    parts       what lanes there are, by the run's layout: parameters, statistics, extras, numbers
    sizing      the ring of a round: wide and proven at first, then sized to the last aggregate
    agreement   all of it in the round's terms, with how keys are exchanged
    device      an update to lanes, and what the coordinator will decode of it
    sessions    the coordinator's side of the masks: what devices are asked, and what they may say
    opening     masked updates to the sum of their lanes
    total       the sum of lanes to means, as the strategy's step reads them
    numbers     examples, losses and metrics, which travel as lanes too: no device's are seen
    rules       what a secure run cannot be, said when it is submitted

The arithmetic is `koinon_core.ring`; the masks over these lanes are `koinon_core.secagg`.
"""
