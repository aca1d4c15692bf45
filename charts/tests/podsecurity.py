"""The Pod Security Standard `restricted`, as a function from a pod's spec to what it violates.

Written from the standard's published table of controls; the API server's own admission is asked in e2e.
"""

ALLOWED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}  # fmt: skip
SECCOMP = {"RuntimeDefault", "Localhost"}


def violations(spec: dict) -> list[str]:
    """What of `restricted` a pod's spec violates; nothing when it complies."""
    found = [f"{field} is true" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    pod = spec.get("securityContext") or {}
    if pod.get("runAsUser") == 0:
        found.append("the pod runs as user 0")
    if (pod.get("windowsOptions") or {}).get("hostProcess"):
        found.append("the pod is a Windows host process")
    for sysctl in pod.get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            found.append(f"sysctl {sysctl['name']}")
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            found.append(f"volume {volume['name']} is a {', '.join(sorted(kinds))}")
    for list_name in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(list_name) or []:
            found += [f"container {container['name']}: {v}" for v in of_container(container, pod)]
    return found


def of_container(container: dict, pod: dict) -> list[str]:
    own = container.get("securityContext") or {}
    found = []
    if own.get("privileged"):
        found.append("privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        found.append("allowPrivilegeEscalation is not false")
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        found.append("runAsNonRoot is not true")
    if own.get("runAsUser") == 0:
        found.append("runs as user 0")
    if (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in SECCOMP:
        found.append("seccompProfile is neither RuntimeDefault nor Localhost")
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        found.append("does not drop ALL capabilities")
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        found.append("adds capabilities")
    if own.get("procMount", "Default") != "Default":
        found.append("procMount is not Default")
    if any(port.get("hostPort") for port in container.get("ports") or []):
        found.append("has a host port")
    probes = [container.get(f"{p}Probe") or {} for p in ("liveness", "readiness", "startup")]
    hooks = [(container.get("lifecycle") or {}).get(h) or {} for h in ("postStart", "preStop")]
    for action in probes + hooks:
        if any((action.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            found.append("a probe or hook names a host")
    return found
