{{- /* Annotations of a definition, as YAML; nothing when there are none. */ -}}
{{- define "strata-crds.annotations" -}}
{{- $annotations := merge (dict) .Values.annotations -}}
{{- if .Values.keep -}}
{{- $_ := set $annotations "helm.sh/resource-policy" "keep" -}}
{{- end -}}
{{- with $annotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "strata-crds.labels" -}}
{{- toYaml (merge (dict "app.kubernetes.io/name" "strata-crds" "app.kubernetes.io/part-of" "strata" "app.kubernetes.io/managed-by" .Release.Service) .Values.labels) -}}
{{- end -}}
