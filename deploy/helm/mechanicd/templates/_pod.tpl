{{- /* The pod of a server: the same over SQLite and over PostgreSQL, but for its store. */ -}}
{{- define "mechanicd.pod" -}}
{{- $name := include "mechanicd.name" . -}}
{{- $shared := .Values.store.postgres.secret -}}
metadata:
  labels: {{- include "mechanicd.labels" . | nindent 4 }}
  {{- with .Values.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: { type: RuntimeDefault }
  terminationGracePeriodSeconds: {{ add .Values.preStopSeconds .Values.grace 20 }}
  containers:
    - name: mechanicd
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - --grpc=0.0.0.0:50051
        - --grpc=unix:/run/mechanicd/grpc.sock
        - --http=0.0.0.0:8080
        {{- range concat (include "mechanicd.hosts" . | fromYamlArray) .Values.pageHosts }}
        - --page-host={{ . }}
        {{- end }}
        {{- if $shared }}
        - --store-file=/etc/mechanicd/store/{{ .Values.store.postgres.key }}
        {{- else }}
        - --store=sqlite:////var/lib/mechanicd/mechanicd.db
        {{- end }}
        - --auth={{ .Values.auth }}
        - --tls-cert=/etc/mechanicd/tls/tls.crt
        - --tls-key=/etc/mechanicd/tls/tls.key
        {{- if .Values.tls.clientCA }}
        - --tls-client-ca=/etc/mechanicd/client-ca/ca.crt
        {{- end }}
        - --grace={{ .Values.grace }}
        {{- range .Values.extraArgs }}
        - {{ . | quote }}
        {{- end }}
      ports:
        - { name: grpc, containerPort: 50051 }
        - { name: http, containerPort: 8080 }
      # By the unix socket, which needs no certificate. A server whose store is away is not ready, but restarting it would help
      # nobody; only one that says nothing for three minutes is restarted.
      startupProbe:
        exec: { command: [mechanicd, health, --live, --target, "unix:/run/mechanicd/grpc.sock"] }
        periodSeconds: 5
        timeoutSeconds: 10
        failureThreshold: 120
      readinessProbe:
        exec: { command: [mechanicd, health, --target, "unix:/run/mechanicd/grpc.sock"] }
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 2
      livenessProbe:
        exec: { command: [mechanicd, health, --live, --target, "unix:/run/mechanicd/grpc.sock"] }
        periodSeconds: 30
        timeoutSeconds: 10
        failureThreshold: 6
      {{- if $shared }}
      lifecycle:
        preStop: { exec: { command: [sleep, {{ .Values.preStopSeconds | quote }}] } }
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: { drop: [ALL] }
      resources: {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - { name: run, mountPath: /run/mechanicd }
        - { name: data, mountPath: /var/lib/mechanicd }
        - { name: tls, mountPath: /etc/mechanicd/tls, readOnly: true }
        {{- if $shared }}
        - { name: store, mountPath: /etc/mechanicd/store, readOnly: true }
        {{- end }}
        {{- if .Values.tls.clientCA }}
        - { name: client-ca, mountPath: /etc/mechanicd/client-ca, readOnly: true }
        {{- end }}
  volumes:
    - { name: run, emptyDir: { medium: Memory } }
    - { name: tls, secret: { secretName: {{ include "mechanicd.tlsSecret" . }}, defaultMode: 0440 } }
    {{- if $shared }}
    - { name: data, emptyDir: {} }
    - { name: store, secret: { secretName: {{ $shared }}, defaultMode: 0440 } }
    {{- end }}
    {{- with .Values.tls.clientCA }}
    - { name: client-ca, secret: { secretName: {{ . }}, defaultMode: 0440 } }
    {{- end }}
  {{- if $shared }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "mechanicd.selector" . | nindent 10 }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
