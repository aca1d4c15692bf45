{{- /* Labels of an object. Argument: dict "root" $ "component" NAME. */ -}}
{{- define "strata.labels" -}}
app.kubernetes.io/name: strata
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: strata
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Labels by which a component's pods are selected. They never change. Argument: NAME. */ -}}
{{- define "strata.selector" -}}
app.kubernetes.io/name: strata
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{- /*
Name, namespace, labels and annotations of an object.
Argument: dict "root" $ "component" NAME, and optionally "name", "namespace" ("-" for none), "annotations".
*/ -}}
{{- define "strata.metadata" -}}
name: {{ .name | default (printf "strata-%s" .component) }}
{{- $namespace := .namespace | default .root.Release.Namespace }}
{{- if ne $namespace "-" }}
namespace: {{ $namespace }}
{{- end }}
labels:
  {{- include "strata.labels" . | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.extraAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The image that all share. Argument: $. */ -}}
{{- define "strata.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* Whether there is a gateway: "true" or nothing. */ -}}
{{- define "strata.hasGateway" -}}
{{- if eq .Values.mode "enterprise" }}true{{ end -}}
{{- end -}}

{{- /* Whether there is a platform: "true" or nothing. */ -}}
{{- define "strata.hasPlatform" -}}
{{- if .Values.platform.enabled }}true{{ end -}}
{{- end -}}

{{- /* The gateway's port for the layer above it. */ -}}
{{- define "strata.internalPort" -}}
{{- ternary 8443 8000 .Values.internalTls -}}
{{- end -}}

{{- /* What the platform calls. */ -}}
{{- define "strata.upstream" -}}
{{- $models := .Values.platform.modelNamespace | default .Release.Namespace -}}
{{- $scheme := ternary "https" "http" .Values.internalTls -}}
{{- if .Values.platform.upstream -}}
{{ .Values.platform.upstream }}
{{- else if include "strata.hasGateway" . -}}
{{ $scheme }}://strata-gateway.{{ .Release.Namespace }}.svc:{{ include "strata.internalPort" . }}
{{- else if eq .Values.mode "production" -}}
{{ $scheme }}://strata-scheduler.{{ $models }}.svc:8000
{{- else -}}
{{ $scheme }}://strata-model.{{ $models }}.svc:8000
{{- end -}}
{{- end -}}

{{- /* Name of an object that is not in a namespace, apart from that of a Strata in another one. */ -}}
{{- define "strata.clusterName" -}}
strata-{{ .component }}-{{ .root.Release.Namespace }}
{{- end -}}

{{- /* The components that the mode installs, as a JSON list. */ -}}
{{- define "strata.components" -}}
{{- $components := list "operator" -}}
{{- if include "strata.hasGateway" . }}{{ $components = append $components "gateway" }}{{ end -}}
{{- if include "strata.hasPlatform" . }}{{ $components = append $components "platform" }}{{ end -}}
{{- toJson $components -}}
{{- end -}}

{{- /* Those that applications call, as a JSON list. */ -}}
{{- define "strata.entrances" -}}
{{- toJson (without (include "strata.components" . | fromJsonArray) "operator") -}}
{{- end -}}
