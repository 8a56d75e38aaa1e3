"""`koinon demo`: a real federation on this machine, on real images, in seconds.

`digits` is the work (data, model, the client's loop), `processes` starts the coordinator and the devices, `show`
is what a person sees.
"""
