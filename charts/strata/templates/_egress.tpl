{{- /*
Names. To anywhere, because what answers is not the same on every cluster: CoreDNS under labels of its
own, a cache on the node that no label selects, and on OpenShift pods that listen on 5353.
*/ -}}
{{- define "strata.egressDns" -}}
- ports:
    {{- range list 53 5353 }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end -}}

{{- /* The API server, which no label selects. */ -}}
{{- define "strata.egressApiServer" -}}
{{- $server := .Values.networkPolicy.apiServer -}}
- ports:
    {{- range $server.ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
  {{- with $server.cidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end -}}

{{- /*
The layers of Strata that a component calls: the gateway schedulers; the platform what stands below it
in this mode; the operator all whose readiness it asks for.
*/ -}}
{{- define "strata.egressLayers" -}}
{{- $root := .root -}}
{{- $layers := list -}}
{{- $here := list -}}
{{- if eq .component "gateway" -}}{{ $layers = list "scheduler" }}
{{- else if eq .component "operator" -}}{{ $layers = list "engine" }}{{ if ne $root.Values.mode "development" }}{{ $layers = append $layers "scheduler" }}{{ end }}{{ if include "strata.hasGateway" $root }}{{ $here = list "gateway" }}{{ end }}
{{- else if include "strata.hasGateway" $root -}}{{ $here = list "gateway" }}
{{- else if eq $root.Values.mode "production" -}}{{ $layers = list "scheduler" }}
{{- else -}}{{ $layers = list "engine" }}
{{- end -}}
{{- with $here }}
- to:
    {{- range . }}
    - podSelector:
        matchLabels:
          {{- include "strata.selector" . | nindent 10 }}
    {{- end }}
  ports:
    - port: {{ include "strata.internalPort" $root }}
      protocol: TCP
{{- end }}
{{- with $layers }}
- to:
    {{- range . }}
    - namespaceSelector:
        {{- if $root.Values.modelNamespaces }}
        matchExpressions:
          - key: kubernetes.io/metadata.name
            operator: In
            values: {{ toJson $root.Values.modelNamespaces }}
        {{- else }} {}
        {{- end }}
      podSelector:
        matchLabels:
          {{- include "strata.selector" . | nindent 10 }}
    {{- end }}
  ports:
    - port: 8000
      protocol: TCP
{{- end }}
{{- end -}}
