"""kstatus, from its documented algorithm, for kinds that it does not know by name.

What Flux and Helm 4 `--wait` judge by: in this order deletion, observedGeneration, Reconciling, Stalled,
Ready; an object that says none of it is current.
"""


def status(obj: dict) -> str:
    """Terminating, InProgress, Failed or Current."""
    metadata, said = obj["metadata"], obj.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in said and said["observedGeneration"] != metadata.get("generation"):
        return "InProgress"
    conditions = {c["type"]: c["status"] for c in said.get("conditions") or []}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if "Ready" in conditions:
        return "Current" if conditions["Ready"] == "True" else "InProgress"
    return "Current"
