{{- /* Who reads metrics, which are on the port of everything else. */ -}}
{{- define "strata.ingressMetrics" -}}
- ports:
    - port: http
  from:
    - namespaceSelector:
        matchExpressions:
          - key: kubernetes.io/metadata.name
            operator: In
            values: {{ toJson .Values.networkPolicy.metricsNamespaces }}
{{- end -}}
