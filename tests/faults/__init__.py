"""The deterministic simulation: the real coordinator (federation, driver, ledger, store on SQLite) and real devices
(conversation, workbench, outbox on disk) in virtual time, with everything going wrong that a seed wants.

    python -m tests.faults --seed 17          one world, told step by step
    python -m tests.faults --rounds 1000000   as many worlds as that takes

`loop` is the clock, `house` a coordinator, `gadget` a device, `world` what happens to them, `laws` what must hold.
"""
