{{- /*
A component's pod template.
Argument: dict "root" $, "component" NAME, "args" LIST, "env" LIST of what it needs, "ready" PATH, and
"state": the name of its claim, "-" for a state that is lost with the pod, nothing for no state; "hop":
whether it needs the credential of internal hops, which the operator makes.
Nothing of another component, of the chart's version or of the release is in it: it changes, and pods
restart, only when the component itself does.
*/ -}}
{{- define "strata.podTemplate" -}}
{{- $component := index .root.Values .component -}}
{{- $stateful := ne (.state | default "") "" -}}
{{- $tls := and .hop .root.Values.internalTls -}}
metadata:
  labels:
    {{- include "strata.selector" .component | nindent 4 }}
    app.kubernetes.io/part-of: strata
    app.kubernetes.io/managed-by: {{ .root.Release.Service }}
    {{- with $component.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $component.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: strata-{{ .component }}
  automountServiceAccountToken: {{ .apiAccess }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $component.terminationGracePeriodSeconds }}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $component.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: {{ .component }}
      image: {{ $component.image | default (include "strata.image" .root) | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [strata, {{ .component }}]
      {{- with .args }}
      args:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      env:
        - name: STRATA_NAMESPACE
          valueFrom:
            fieldRef:
              fieldPath: metadata.namespace
        - name: STRATA_LISTEN
          value: 0.0.0.0:8000
        - name: STRATA_LOG_FORMAT
          value: {{ .root.Values.logFormat }}
        {{- if $stateful }}
        - name: STRATA_STATE
          value: /var/lib/strata
        # SQLite sorts what is large in a file, and the root has no folder that it may write to.
        - name: SQLITE_TMPDIR
          value: /var/lib/strata
        {{- end }}
        {{- if hasKey $component "preStopSeconds" }}
        # What the pause leaves of the grace, but for a second in which the process ends.
        - name: STRATA_DRAIN_GRACE
          value: {{ sub $component.terminationGracePeriodSeconds $component.preStopSeconds | add -1 | max 1 | quote }}
        {{- end }}
        {{- if $tls }}
        - name: STRATA_HOP_DIR
          value: /var/run/strata/hop
        {{- else if .hop }}
        - name: STRATA_HOP_TOKEN
          valueFrom:
            secretKeyRef:
              name: strata-hop
              key: token
        {{- end }}
        {{- with .env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $component.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - name: http
          containerPort: 8000
          protocol: TCP
        {{- if and $tls (eq .component "gateway") }}
        - name: internal
          containerPort: 8443
          protocol: TCP
        {{- end }}
      startupProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: 1
        timeoutSeconds: 2
        failureThreshold: 120
      livenessProbe:
        httpGet:
          path: /health
          port: http
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      readinessProbe:
        httpGet:
          path: {{ .ready }}
          port: http
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      {{- if $component.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $component.preStopSeconds }}
      {{- end }}
      {{- with $component.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      {{- if or $stateful $tls }}
      volumeMounts:
        {{- if $stateful }}
        - name: state
          mountPath: /var/lib/strata
        {{- end }}
        {{- if $tls }}
        - name: hop
          mountPath: /var/run/strata/hop
          readOnly: true
        {{- end }}
      {{- end }}
  {{- if or $stateful $tls }}
  volumes:
    {{- if $tls }}
    - name: hop
      secret:
        secretName: strata-hop-{{ .component }}
        # 0440, which not every reader of YAML takes for octal.
        defaultMode: 288
        # Named one by one, so that the pod waits until the operator has filled the Secret.
        items:
          {{- range list "ca.crt" "tls.crt" "tls.key" }}
          - key: {{ . }}
            path: {{ . }}
          {{- end }}
    {{- end }}
    {{- if $stateful }}
    - name: state
      {{- if eq .state "-" }}
      emptyDir: {}
      {{- else }}
      persistentVolumeClaim:
        claimName: {{ .state }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- with .spread }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $component.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $component.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $component.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* The claim of a component's state, as "strata.podTemplate" takes it. Argument as there. */ -}}
{{- define "strata.state" -}}
{{- $persistence := (index .root.Values .component).persistence -}}
{{- if not $persistence.enabled -}}-
{{- else -}}{{ $persistence.existingClaim | default (printf "strata-%s" .component) }}
{{- end -}}
{{- end -}}
