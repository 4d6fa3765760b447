"""On paper, without torch: what stays, what streams, in which units and where. Bytes are taken as given: the host store
aligns its tensors, so nothing is aligned here."""
