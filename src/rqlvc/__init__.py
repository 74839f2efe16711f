"""Learned video coding at the bitrate you ask for.

The rooms: :mod:`rqlvc.media` (frames in and out), :mod:`rqlvc.codec` (the neural codec), :mod:`rqlvc.rate` (rate
control, usable with any codec), :mod:`rqlvc.training`, :mod:`rqlvc.evaluation`, :mod:`rqlvc.cli`. The two sessions
:mod:`rqlvc.encoder` (a whole file: :mod:`rqlvc.transcode`) and :mod:`rqlvc.decoder` are the only places that know
media, codec and rate at once.
"""

__version__ = "0.1.0"
