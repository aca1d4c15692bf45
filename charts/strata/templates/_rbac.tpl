{{- /*
What a component may do: "own" in Strata's namespace, "models" in the namespaces with models (all of
them, or those of modelNamespaces), "cluster" on objects without a namespace.
Argument: dict "root" $, "component" NAME, "rules" dict of lists of rules.
*/ -}}
{{- define "strata.rbac" -}}
{{- $root := .root -}}
{{- $component := .component -}}
{{- $name := printf "strata-%s" $component -}}
{{- $namespaces := $root.Values.modelNamespaces -}}
{{- $cluster := .rules.cluster | default list -}}
{{- if not $namespaces -}}{{ $cluster = concat $cluster .rules.models }}{{- end -}}
{{- include "strata.role" (dict "root" $root "component" $component "name" $name "namespace" $root.Release.Namespace "rules" .rules.own) }}
{{- range $namespaces }}
{{ include "strata.role" (dict "root" $root "component" $component "name" (printf "%s-models" $name) "namespace" . "rules" $.rules.models) }}
{{- end }}
{{- if $cluster }}
{{ include "strata.role" (dict "root" $root "component" $component "name" (include "strata.clusterName" .) "namespace" "-" "rules" $cluster) }}
{{- end }}
{{- end -}}

{{- /* A Role and its binding, or with namespace "-" a ClusterRole and its binding. */ -}}
{{- define "strata.role" -}}
{{- $kind := ternary "ClusterRole" "Role" (eq .namespace "-") -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  {{- include "strata.metadata" . | nindent 2 }}
rules:
  {{- toYaml .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  {{- include "strata.metadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: strata-{{ .component }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}
