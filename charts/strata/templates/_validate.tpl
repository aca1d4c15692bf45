{{- /* Rules that join several values, which the schema cannot tell in words. */ -}}
{{- define "strata.validate" -}}
{{- $v := .Values -}}
{{- if ne $v.mode "enterprise" -}}
  {{- if not $v.platform.insecureNoAuth -}}
    {{- fail (printf "\n\nmode %s has no gateway, so nothing checks who calls the platform. If that is what you want, set platform.insecureNoAuth=true; else set mode=enterprise.\n" $v.mode) -}}
  {{- end -}}
  {{- if not $v.platform.enabled -}}
    {{- fail (printf "\n\nmode %s without the platform has no entrance. Set platform.enabled=true, or mode=enterprise, where applications can call the gateway.\n" $v.mode) -}}
  {{- end -}}
  {{- if $v.enterprise.localObjectsTenant -}}
    {{- fail (printf "\n\nenterprise.localObjectsTenant is set, but mode is %s, which has no tenants. Remove it, or set mode=enterprise.\n" $v.mode) -}}
  {{- end -}}
  {{- $models := $v.platform.modelNamespace | default .Release.Namespace -}}
  {{- if and $v.modelNamespaces (not (has $models $v.modelNamespaces)) -}}
    {{- fail (printf "\n\nthe platform would use the models of namespace %q, which is not in modelNamespaces %v. Set platform.modelNamespace to one of them.\n" $models $v.modelNamespaces) -}}
  {{- end -}}
{{- end -}}
{{- if $v.operator.picker.enabled -}}
  {{- if eq $v.mode "development" -}}
    {{- fail "\n\noperator.picker.enabled is set, but mode development has no scheduler that could be asked. Remove it, or set mode=production or enterprise.\n" -}}
  {{- end -}}
{{- else if $v.operator.picker.from -}}
  {{- fail "\n\noperator.picker.from is set, but nobody can ask. Set operator.picker.enabled=true, or remove it.\n" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled $v.networkPolicy.enabled (not $v.networkPolicy.metricsNamespaces) -}}
  {{- fail "\n\nserviceMonitor.enabled is set, but the NetworkPolicies let no Prometheus read metrics. Set networkPolicy.metricsNamespaces to its namespace, for example {monitoring}.\n" -}}
{{- end -}}
{{- range $name, $component := dict "operator" $v.operator "gateway" $v.gateway "platform" $v.platform -}}
  {{- range list "name" "component" "part-of" "managed-by" -}}
    {{- $label := printf "app.kubernetes.io/%s" . -}}
    {{- if hasKey $component.podLabels $label -}}
      {{- fail (printf "\n\n%s.podLabels sets %s, by which Services, policies and you find the pods: it is the chart's own. Remove it.\n" $name $label) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/component" "app.kubernetes.io/part-of" "app.kubernetes.io/instance" "app.kubernetes.io/managed-by" "app.kubernetes.io/version" "helm.sh/chart" -}}
  {{- if hasKey $v.extraLabels $label -}}
    {{- fail (printf "\n\nextraLabels sets %s, which is the chart's own. Remove it.\n" $label) -}}
  {{- end -}}
{{- end -}}
{{- range $name, $component := dict "gateway" $v.gateway "platform" $v.platform -}}
  {{- if and $component.httpRoute.enabled (not $component.httpRoute.parentRefs) -}}
    {{- fail (printf "\n\n%s.httpRoute.enabled needs %s.httpRoute.parentRefs: the name of the Gateway that the route hangs from.\n" $name $name) -}}
  {{- end -}}
  {{- if le (int $component.terminationGracePeriodSeconds) (int $component.preStopSeconds) -}}
    {{- fail (printf "\n\n%s.terminationGracePeriodSeconds (%d) must be more than %s.preStopSeconds (%d), or open streams are cut. Try 65 and 5.\n" $name (int $component.terminationGracePeriodSeconds) $name (int $component.preStopSeconds)) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
